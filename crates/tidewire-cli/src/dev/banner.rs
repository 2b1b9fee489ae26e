//! What a person sees when `dev` is ready. The superuser's URL is not among it: it opens everything, and
//! terminals are shared. `--json` hands it to scripts.

use std::path::Path;
use std::time::Duration;

use super::Ready;

pub(super) fn text(ready: &Ready<'_>, demo: bool, data_dir: &Path, took: Duration) -> String {
    let Ready { url, anon_key, service_key, .. } = ready;
    let page = if demo {
        format!("Open {url}/ in two windows: a shared table, who is online, broadcasts.")
    } else {
        format!("Open {url}/ to watch it work. With `--demo` there is a table to play with.")
    };
    let seconds = took.as_secs_f64();
    let folder = data_dir.display();
    format!(
        "
  Tidewire is ready ({seconds:.2} s). Ctrl-C ends everything.

  {page}

  URL          {url}
  anon key     {anon_key}
  service key  {service_key}
               (the service key passes every policy: keep it on servers)

  Connect with supabase-js:

    import {{ createClient }} from '@supabase/supabase-js'
    const supabase = createClient('{url}', '{anon_key}')
    supabase.channel('room').on('broadcast', {{ event: '*' }}, console.log).subscribe()

  A token for a signed-in user: tidewire token --sub $(uuidgen)
  Database and keys are kept in {folder}
"
    )
}
