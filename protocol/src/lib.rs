//! The core of twinfold, without input and output.
//!
//! Everything two nodes must agree on lives here: the operations ([`op`]), their
//! bytes on the wire ([`wire`]), the bounds on all of it ([`limits`]), and the
//! state machines that decide what is shipped, acknowledged, held, marked and
//! moved ([`primary`], [`secondary`], [`handshake`], [`automaton`], [`lifecycle`], [`marks`], [`compare`],
//! [`verify`]).
//!
//! The crate has no runtime, no sockets, no files and no clock. Events go in with
//! the time at which they happened; effects come out. The driver runs this code
//! under a real network, the tests under a simulated one.

pub mod attr;
pub mod automaton;
pub mod compare;
pub mod handshake;
pub mod ids;
pub mod lifecycle;
pub mod limits;
pub mod marks;
pub mod op;
pub mod primary;
pub mod remote;
pub mod secondary;
pub mod time;
pub mod verify;
pub mod wire;
