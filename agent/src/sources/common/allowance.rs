//! How much memory the connections of a source may hold, one by one and together.
//!
//! A connection reads small frames for nothing; what a larger frame needs is taken from the budget of all sources as
//! its bytes arrive, and given back when the frame is answered. Waiting for it is the back-pressure: the connection is
//! not read meanwhile. Frames grow while they hold a part already, so all could wait for each other; one of them may
//! therefore go beyond the budget, up to the frame limit, and this one never waits. That bounds the memory by the
//! budget plus one frame for each source, and something always moves.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::component::{Budget, BudgetShare};

/// What a connection may hold for nothing: a read buffer and a frame that fits into it.
pub(crate) const FREE_BYTES: usize = 16 * 1024;

/// A frame is counted at twice its size: its bytes, and the events that are made of them.
const FACTOR: usize = 2;

/// What the connections of one source share.
#[derive(Clone)]
pub(crate) struct SharedAllowance {
    budget: Budget,
    overdraft: Arc<Semaphore>,
}

impl SharedAllowance {
    pub(crate) fn new(budget: Budget) -> SharedAllowance {
        SharedAllowance { budget, overdraft: Arc::new(Semaphore::new(1)) }
    }

    pub(crate) fn of_connection(&self) -> Allowance {
        Allowance { shared: self.clone(), shares: Vec::new(), covered: FREE_BYTES, overdraft: None }
    }
}

/// What one connection holds.
pub(crate) struct Allowance {
    shared: SharedAllowance,
    shares: Vec<BudgetShare>,
    /// Frame bytes that may be in memory.
    covered: usize,
    overdraft: Option<OwnedSemaphorePermit>,
}

impl Allowance {
    /// Waits until `bytes` of a frame may be in memory.
    pub(crate) async fn cover(&mut self, bytes: usize) {
        while bytes > self.covered && self.overdraft.is_none() {
            // Doubling keeps the number of shares small.
            let target = bytes.max(self.covered * 2);
            let overdraft = Arc::clone(&self.shared.overdraft);
            tokio::select! {
                biased;
                share = self.shared.budget.acquire((target - self.covered) * FACTOR) => {
                    self.shares.push(share);
                    self.covered = target;
                }
                permit = overdraft.acquire_owned() => self.overdraft = permit.ok(),
            }
        }
    }

    /// The frame is answered: nothing is held but what is free.
    pub(crate) fn release(&mut self) {
        self.shares.clear();
        self.overdraft = None;
        self.covered = FREE_BYTES;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    async fn waits(allowance: &mut Allowance, bytes: usize) -> bool {
        tokio::time::timeout(Duration::ZERO, allowance.cover(bytes)).await.is_err()
    }

    #[tokio::test]
    async fn one_of_those_that_wait_for_each_other_may_go_on() {
        let shared = SharedAllowance::new(Budget::new(64 * 1024));
        let (mut first, mut second, mut third) =
            (shared.of_connection(), shared.of_connection(), shared.of_connection());
        assert!(!waits(&mut first, FREE_BYTES).await);
        assert!(!waits(&mut first, FREE_BYTES + 1).await, "the first half of the budget");
        assert!(!waits(&mut second, FREE_BYTES + 1).await, "the other half");
        assert!(!waits(&mut first, 10 * FREE_BYTES).await, "beyond the budget");
        assert!(!waits(&mut first, 1000 * FREE_BYTES).await, "and never stopped again");
        assert!(waits(&mut second, 3 * FREE_BYTES).await);
        assert!(waits(&mut third, FREE_BYTES + 1).await);
        first.release();
        assert!(!waits(&mut second, 3 * FREE_BYTES).await);
    }
}
