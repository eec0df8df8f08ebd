//! The primary dies, the other node takes over, the dead one returns.

use crate::node::{Node, Role};
use crate::pair::Pair;

impl Pair {
    /// The primary and the secondary.
    fn roles(&mut self) -> (&mut Node, &mut Node) {
        let is_primary = |node: &Node| node.status().is_ok_and(|s| s["role"] == "primary");
        match (is_primary(&self.a), is_primary(&self.b)) {
            (true, false) => (&mut self.a, &mut self.b),
            (false, true) => (&mut self.b, &mut self.a),
            other => panic!("not one primary and one secondary: {other:?}"),
        }
    }

    /// Kills the driver of the primary where it is and makes the secondary primary, by
    /// the means an operator has and without force. Whatever still has something open
    /// on the dead mount gets errors.
    pub fn fail_over(&mut self) {
        let (from, to) = self.roles();
        from.kill();
        to.promote(false).expect("the survivor is promoted");
    }

    /// Starts the node that does not run as secondary, and waits until it is up to date.
    pub fn bring_back(&mut self) {
        let dead = if self.a.is_running() {
            &mut self.b
        } else {
            &mut self.a
        };
        dead.start(Role::Secondary).expect("the dead node returns");
        self.wait_paired();
    }
}
