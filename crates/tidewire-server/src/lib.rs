//! The Tidewire server as a library: endpoints, shards, change stream, configuration.
