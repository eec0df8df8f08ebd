//! What the `twinfold` binary shares with the tests.

pub mod guest;
