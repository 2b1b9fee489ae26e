//! Saying what is done, and how long it took.

use std::time::Instant;

/// A line for the developer. Standard output is for results only.
pub(crate) fn say(text: &str) {
    eprintln!("{text}");
}

/// A step of a longer task.
pub(crate) struct Step {
    name: String,
    began: Instant,
}

impl Step {
    pub(crate) fn begin(name: &str) -> Self {
        say(&format!("==> {name}"));
        Self { name: name.to_owned(), began: Instant::now() }
    }

    pub(crate) fn end(&self) {
        say(&format!("    {} took {:.1} s", self.name, self.began.elapsed().as_secs_f64()));
    }
}
