//! Against a real PostgreSQL: what is judged on an image is what a `SELECT` of that role returns.

mod postgres {
    mod bindings;
    mod catalogue;
    mod fixture;
    mod judging;
    mod messages;
    mod messages_oracle;
    mod messages_replay;
    mod oracle;
    mod waiting;
}
