//! `./x codegen`: writes the documents that the code knows best, `docs/generated/`.
//!
//! Owns nothing but the call: the tests that compare the documents also write them, so that what is written
//! and what is compared cannot differ. Without `./x codegen`, `./x test` fails when a document is stale.

use crate::system::{Trouble, cargo, succeeds};

/// Runs the writing tests.
pub(crate) fn codegen() -> Result<(), Trouble> {
    let mut tests = cargo();
    tests.args(["test", "--quiet", "--package", "tidewire-server", "--test", "metrics", "generated::"]);
    if succeeds(tests.env("TIDEWIRE_CODEGEN", "1")) {
        Ok(())
    } else {
        Err(Trouble::new("docs/generated could not be written", "the reason stands above"))
    }
}
