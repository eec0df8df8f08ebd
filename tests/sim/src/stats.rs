//! What was counted in a run.

use crate::faults::Fault;

/// What was counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Changes the application asked for.
    pub asked: u64,
    /// Those it was told are done.
    pub acknowledged: u64,
    /// Promotions.
    pub failovers: u64,
    /// Starts of a process.
    pub restarts: u64,
    /// Resyncs that came to their end.
    pub resyncs: u64,
    /// Sessions that went on over a new connection.
    pub resumed: u64,
    /// Times a primary went on alone.
    pub alone: u64,
    /// Times the checker looked at a copy.
    pub looks: u64,
    /// Times the secondary's copy was compared with its place in the sequence.
    pub prefixes: u64,
    /// Questions of a verify that were answered.
    pub verified: u64,
    /// Copies out of files without a name.
    pub orphans: u64,
    /// Checkpoints that came to their end.
    pub checkpoints: u64,
    /// Checkpoints of a primary that was alone.
    pub alone_checkpoints: u64,
    /// Planned hand-overs.
    pub swaps: u64,
    /// Copies given up after a split.
    pub splits: u64,
    /// Disks that failed under a primary whose peer could take over.
    pub failed_disks: u64,
    /// Peers that took over, and the primary learnt of it.
    pub take_overs: u64,
    /// Peers that turned out not to be able to.
    pub without_heir: u64,
    /// Applications that were swapped over to a node that had taken over.
    pub heirs_promoted: u64,
    /// Copies that were made the good one because there was none.
    pub last_resorts: u64,
    /// Calls that a peer carried out.
    pub remote_calls: u64,
    /// Blocks read and compared with what was promised.
    pub reads: u64,
    /// Reads that the disk failed.
    pub failed_reads: u64,
    /// Secondaries that left and came back because they may differ.
    pub rejoins: u64,
    /// What the nodes did to disks, network and application.
    pub effects: u64,
    /// Faults of each kind, as in [`Fault::NAMES`].
    pub faults: [u64; Fault::NAMES.len()],
}

impl Stats {
    /// How often each kind of fault happened.
    pub fn faults_by_name(&self) -> String {
        let counts = Fault::NAMES.iter().zip(self.faults);
        let texts: Vec<String> = counts.map(|(name, n)| format!("{name} {n}")).collect();
        texts.join(", ")
    }

    /// Adds what was counted elsewhere.
    pub fn add(&mut self, other: &Stats) {
        self.asked += other.asked;
        self.acknowledged += other.acknowledged;
        self.failovers += other.failovers;
        self.restarts += other.restarts;
        self.resyncs += other.resyncs;
        self.resumed += other.resumed;
        self.alone += other.alone;
        self.looks += other.looks;
        self.prefixes += other.prefixes;
        self.verified += other.verified;
        self.orphans += other.orphans;
        self.checkpoints += other.checkpoints;
        self.alone_checkpoints += other.alone_checkpoints;
        self.swaps += other.swaps;
        self.splits += other.splits;
        self.failed_disks += other.failed_disks;
        self.take_overs += other.take_overs;
        self.without_heir += other.without_heir;
        self.heirs_promoted += other.heirs_promoted;
        self.last_resorts += other.last_resorts;
        self.remote_calls += other.remote_calls;
        self.reads += other.reads;
        self.failed_reads += other.failed_reads;
        self.rejoins += other.rejoins;
        self.effects += other.effects;
        for (mine, theirs) in self.faults.iter_mut().zip(other.faults) {
            *mine += theirs;
        }
    }
}
