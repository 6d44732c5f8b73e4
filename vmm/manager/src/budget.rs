//! The budget of scarce host resources that instances may use, reserved in
//! advance.
//!
//! When an instance is created, it reserves everything it will ever need: its
//! console, the files of its memory, its images, the process that it runs in.
//! So a creation that exceeds the budget is refused with numbers, and a running
//! instance can always be booted again.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

use mkvmm_base::{Class, Diagnose};

/// The manager's descriptors per instance, apart from memory files and images:
/// a console and two doorbells, a channel, a process and its memory's statistics, a
/// board, a log; and a pipe until a new process has executed its program.
const OWN_DESCRIPTORS: u64 = 9;
/// The manager's descriptors per worker that waits for an instance.
const WAITING_DESCRIPTORS: u64 = 4;
/// The threads of a worker apart from its vCPUs: its main thread, and KVM's.
const OWN_TASKS: u64 = 3;
/// The manager's mappings per instance: its console's ring, and its board
/// beside that of the previous boot.
const OWN_MAPPINGS: u64 = 4;

/// A scarce resource of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Open files of the manager.
    Descriptors,
    /// The processes and threads of all instances.
    Tasks,
    /// Memory mappings of the manager.
    Mappings,
}

impl Resource {
    const ALL: [Self; 3] = [Self::Descriptors, Self::Tasks, Self::Mappings];

    const fn hint(self) -> &'static str {
        match self {
            Self::Descriptors => {
                "delete instances, or start mkvmm with a higher limit of open files \
                 (ulimit -n, systemd's LimitNOFILE=)"
            }
            Self::Tasks => {
                "delete instances, take fewer vCPUs, or raise the limit of threads \
                 (ulimit -u, systemd's TasksMax=, kernel.threads-max)"
            }
            Self::Mappings => "delete instances, or raise vm.max_map_count",
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Descriptors => "descriptors",
            Self::Tasks => "threads",
            Self::Mappings => "mappings",
        })
    }
}

/// An amount of each resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Open files of the manager.
    pub descriptors: u64,
    /// The number of processes and threads.
    pub tasks: u64,
    /// Memory mappings of the manager.
    pub mappings: u64,
}

impl Amounts {
    /// An amount that sets no limit.
    pub const MAX: Self = Self {
        descriptors: u64::MAX,
        tasks: u64::MAX,
        mappings: u64::MAX,
    };

    /// Returns the needs of an instance with `cpus` vCPUs, `files` files of
    /// memory and `images` images. Files count twice: new ones are created
    /// before those of the previous boot are closed.
    pub fn of_instance(cpus: u8, files: usize, images: usize) -> Self {
        let (files, images) = (files as u64, images as u64);
        Self {
            descriptors: OWN_DESCRIPTORS + 2 * files + images,
            tasks: OWN_TASKS + u64::from(cpus),
            mappings: OWN_MAPPINGS,
        }
    }

    /// Returns both amounts together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.combine(other, u64::saturating_add)
    }

    /// Returns the needs of a worker that waits for an instance: its process, the
    /// channel to it, and a pipe until it has executed its program.
    pub const fn of_waiting() -> Self {
        Self {
            descriptors: WAITING_DESCRIPTORS,
            tasks: OWN_TASKS + 1,
            mappings: 0,
        }
    }

    const fn of(&self, resource: Resource) -> u64 {
        match resource {
            Resource::Descriptors => self.descriptors,
            Resource::Tasks => self.tasks,
            Resource::Mappings => self.mappings,
        }
    }

    fn combine(self, other: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            descriptors: with(self.descriptors, other.descriptors),
            tasks: with(self.tasks, other.tasks),
            mappings: with(self.mappings, other.mappings),
        }
    }
}

/// A resource that is exhausted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it needs {needed} {resource}, and {booked} of {limit} are in use")]
pub struct Shortage {
    /// The resource that is exhausted.
    pub resource: Resource,
    /// The amount that is needed.
    pub needed: u64,
    /// The amount that is reserved.
    pub booked: u64,
    /// The amount that may be reserved.
    pub limit: u64,
}

impl Diagnose for Shortage {
    fn class(&self) -> Class {
        Class::Exhausted
    }

    fn hint(&self) -> Option<String> {
        Some(self.resource.hint().to_owned())
    }
}

/// The resources that all instances together may use.
#[derive(Debug)]
pub struct Budget {
    limit: Amounts,
    booked: Cell<Amounts>,
}

impl Budget {
    /// Creates a budget of which nothing is reserved.
    pub fn new(limit: Amounts) -> Rc<Self> {
        Rc::new(Self {
            limit,
            booked: Cell::default(),
        })
    }

    /// Returns the total budget.
    pub fn limit(&self) -> Amounts {
        self.limit
    }

    /// Returns the reserved part of the budget.
    pub fn booked(&self) -> Amounts {
        self.booked.get()
    }

    /// Reserves `needed` for what can be done without: a quarter of each resource
    /// stays free.
    ///
    /// # Errors
    /// Returns a [`Shortage`] that names the first resource of which less would be
    /// free.
    pub fn book_spare(self: &Rc<Self>, needed: Amounts) -> Result<Booking, Shortage> {
        let booking = self.book(needed)?;
        for resource in Resource::ALL {
            let [limit, booked] = [self.limit, self.booked()].map(|of| of.of(resource));
            let limit = limit - limit / 4;
            if booked > limit {
                let needed = needed.of(resource);
                return Err(Shortage {
                    resource,
                    needed,
                    booked: booked - needed,
                    limit,
                });
            }
        }
        Ok(booking)
    }

    /// Reserves `needed` until the booking is dropped.
    ///
    /// # Errors
    /// Returns a [`Shortage`] that names the first exhausted resource.
    pub fn book(self: &Rc<Self>, needed: Amounts) -> Result<Booking, Shortage> {
        let mut booking = Booking {
            budget: Rc::clone(self),
            amounts: Amounts::default(),
        };
        booking.change(needed)?;
        Ok(booking)
    }
}

/// The resources that one instance has reserved.
#[derive(Debug)]
pub struct Booking {
    budget: Rc<Budget>,
    amounts: Amounts,
}

impl Booking {
    /// Replaces the reserved amounts by `needed`.
    ///
    /// # Errors
    /// Returns a [`Shortage`]; the booking is unchanged then. Reducing the
    /// amount of a resource is never refused.
    pub fn change(&mut self, needed: Amounts) -> Result<(), Shortage> {
        let others = self.others();
        for resource in Resource::ALL {
            let [limit, booked] = [self.budget.limit, others].map(|of| of.of(resource));
            let (needed, had) = (needed.of(resource), self.amounts.of(resource));
            if needed > had && needed > limit.saturating_sub(booked) {
                return Err(Shortage {
                    resource,
                    needed,
                    booked,
                    limit,
                });
            }
        }
        self.budget
            .booked
            .set(others.combine(needed, u64::saturating_add));
        self.amounts = needed;
        Ok(())
    }

    fn others(&self) -> Amounts {
        let booked = self.budget.booked.get();
        booked.combine(self.amounts, u64::saturating_sub)
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        self.budget.booked.set(self.others());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptors(descriptors: u64) -> Amounts {
        Amounts {
            descriptors,
            ..Amounts::default()
        }
    }

    #[test]
    fn what_is_booked_comes_back_and_more_than_there_is_cannot_be_had() {
        let budget = Budget::new(descriptors(10));
        let mut first = budget.book(descriptors(6)).unwrap();
        let shortage = budget.book(descriptors(5)).unwrap_err();
        assert_eq!(
            (shortage.needed, shortage.booked, shortage.limit),
            (5, 6, 10)
        );
        assert_eq!(budget.booked(), descriptors(6));
        first.change(descriptors(10)).unwrap();
        first.change(descriptors(11)).unwrap_err();
        first.change(descriptors(2)).unwrap();
        let second = budget.book(descriptors(8)).unwrap();
        drop((first, second));
        assert_eq!(budget.booked(), descriptors(0));
    }

    #[test]
    fn what_can_be_done_without_leaves_a_quarter() {
        let budget = Budget::new(descriptors(8));
        let instance = budget.book(descriptors(5)).unwrap();
        let spare = budget.book_spare(descriptors(1)).unwrap();
        let shortage = budget.book_spare(descriptors(1)).unwrap_err();
        let Shortage {
            needed,
            booked,
            limit,
            ..
        } = shortage;
        assert_eq!((needed, booked, limit), (1, 6, 6));
        assert_eq!(budget.booked(), descriptors(6));
        budget.book(descriptors(2)).unwrap();
        drop((instance, spare));
        assert_eq!(budget.booked(), descriptors(0));
        Budget::new(Amounts::MAX)
            .book_spare(Amounts::of_waiting())
            .unwrap();
    }

    #[test]
    fn threads_are_counted_by_vcpu() {
        let limit = Amounts {
            tasks: 100,
            ..Amounts::MAX
        };
        let budget = Budget::new(limit);
        let _one = budget.book(Amounts::of_instance(64, 1, 1)).unwrap();
        let shortage = budget.book(Amounts::of_instance(64, 1, 1)).unwrap_err();
        assert_eq!(shortage.resource, Resource::Tasks);
        budget.book(Amounts::of_instance(1, 1, 1)).unwrap();
    }
}
