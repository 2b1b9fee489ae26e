//! Against a real PostgreSQL: what is made is what clients, policies and the reference count on.

mod postgres {
    mod fixture;
    mod functions;
    mod objects;
    mod partitions;
}
