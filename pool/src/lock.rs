//! The only lock of the crate, held during one operation of the pool that it guards.
//!
//! With `std` it is a mutex that sleeps, without it a spin lock, and under `cfg(loom)` the model
//! checker's mutex.

/// A value guarded by a mutex.
#[derive(Debug)]
pub(crate) struct Lock<T>(Inner<T>);

#[cfg(loom)]
type Inner<T> = loom::sync::Mutex<T>;
#[cfg(all(not(loom), feature = "std"))]
type Inner<T> = std::sync::Mutex<T>;
#[cfg(all(not(loom), not(feature = "std")))]
type Inner<T> = spin::Mutex<T>;

impl<T> Lock<T> {
    pub fn new(value: T) -> Self {
        Self(Inner::new(value))
    }

    /// Runs `operation` while no other thread can see the value.
    pub fn with<R>(&self, operation: impl FnOnce(&mut T) -> R) -> R {
        #[cfg(any(loom, feature = "std"))]
        {
            // No pool operation panics half way, so the value is valid even if the lock is
            // poisoned.
            let mut guard = self
                .0
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            operation(&mut guard)
        }
        #[cfg(not(any(loom, feature = "std")))]
        operation(&mut self.0.lock())
    }
}
