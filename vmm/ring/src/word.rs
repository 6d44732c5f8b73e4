//! The words of shared memory: atomics of the machine, or those of the model checker.

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::fence;
#[cfg(loom)]
pub(crate) use loom::sync::atomic::fence;

/// A word of shared memory: [`core::sync::atomic::AtomicU64`].
///
/// Such a word has no invalid values, and the compiler does not assume that it stays unchanged. So
/// a slice of them is sound even if another program, or another kernel, writes anything to it at any
/// time.
#[cfg(not(loom))]
pub type Word = core::sync::atomic::AtomicU64;
#[cfg(loom)]
pub use mortality::Word;

/// Words whose users can die: for the model checker.
#[cfg(loom)]
#[expect(missing_docs, reason = "not part of the published crate")]
pub mod mortality {
    use core::cell::Cell;
    use core::sync::atomic::Ordering;

    loom::thread_local! {
        /// How many accesses the current side has left; `None` if it does not die.
        static LEFT: Cell<Option<usize>> = Cell::new(None);
    }

    /// A word whose accesses have no effect once the current thread is dead.
    #[derive(Debug)]
    pub struct Word(loom::sync::atomic::AtomicU64);

    /// Lets the current thread die after `accesses` more of them.
    pub fn die_after(accesses: usize) {
        LEFT.with(|left| left.set(Some(accesses)));
    }

    /// Lets the current thread live on, as the successor of the one that died. Returns whether that
    /// one did die.
    pub fn revive() -> bool {
        LEFT.with(|left| left.replace(None) == Some(0))
    }

    /// Returns whether the current thread is dead.
    pub fn is_dead() -> bool {
        LEFT.with(|left| left.get() == Some(0))
    }

    fn is_alive() -> bool {
        LEFT.with(|left| match left.get() {
            None => true,
            Some(0) => false,
            Some(accesses) => {
                left.set(Some(accesses.saturating_sub(1)));
                true
            }
        })
    }

    impl Word {
        pub fn new(value: u64) -> Self {
            Self(loom::sync::atomic::AtomicU64::new(value))
        }

        pub fn load(&self, order: Ordering) -> u64 {
            if is_alive() { self.0.load(order) } else { 0 }
        }

        pub fn store(&self, value: u64, order: Ordering) {
            if is_alive() {
                self.0.store(value, order);
            }
        }
    }
}
