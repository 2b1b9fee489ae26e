//! The hub, driven as an event loop drives it, in virtual time: sessions word for word, the tables of
//! `PROTOCOL.md` row by row, and random histories against a model.

mod access;
mod broadcast;
mod index;
mod join;
mod lifetime;
mod model;
mod noise;
mod presence;
mod rates;
mod routing;
mod server;
mod session;
mod token;
mod view;
