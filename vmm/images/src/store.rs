//! The store: has images unpacked on request, and caches the results.
//!
//! The first request for an image has it unpacked; others that arrive meanwhile
//! wait for the same work. No request waits for another image. The work is
//! polled by its waiters, so it ends with the last of them, and its process
//! with it.
//!
//! The store belongs to one thread (`Rc`, `RefCell`): its futures run on a
//! current-thread runtime, in a `LocalSet` or under `block_on`, with tokio's
//! blocking pool. File system accesses and comparisons of contents happen on
//! that pool; in between only descriptors are handled.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, Shared, WeakShared};
use mkvmm_base::image_facts::BootMode;
use mkvmm_base::unpacking::{ImageRole, Job, Unpacked};
use tokio::task::{spawn_blocking, spawn_local};

use crate::cache::{Cache, CacheCounters};
use crate::identity::FileId;
use crate::memfile::Unsealed;
use crate::source::{Access, ImageSource, Opened};
use crate::stored::{ImageInfo, StoredImage};
use crate::unpackers::{LateHash, Unpackers};

mod batch;
mod compare;
mod error;
mod sizes;

pub use batch::Batch;
pub use error::StoreError;
pub use sizes::SizeError;

/// The resources that the store may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The number of bytes of images that are cached for later requests.
    pub kept: u64,
    /// The number of images that are cached; each uses a descriptor.
    pub kept_count: usize,
    /// The number of bytes that all running unpackers may use.
    pub in_flight: u64,
}

/// An image that is part of the program: it is trusted, and its facts are known
/// beforehand.
#[derive(Debug, Clone)]
pub struct BuiltIn {
    /// The name by which users refer to it.
    pub name: &'static str,
    /// The contents of the unpacked image.
    pub bytes: &'static [u8],
    /// The facts about the image.
    pub content: Unpacked,
    /// The way in which it is started.
    pub boot: BootMode,
}

/// An image, with information about this request for it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The image, shared with all its other users.
    pub image: Arc<StoredImage>,
    /// The source of the image, and the time that loading it took.
    pub info: ImageInfo,
}

/// The work on one image, shared by all its waiters.
type Work = Shared<LocalBoxFuture<'static, Result<Done, StoreError>>>;
type WeakWork = WeakShared<LocalBoxFuture<'static, Result<Done, StoreError>>>;

/// The result of the work.
#[derive(Debug, Clone)]
struct Done {
    image: Arc<StoredImage>,
    /// True if the content was cached before.
    known: bool,
}

/// Work in progress that others may join.
#[derive(Debug)]
struct Flight {
    work: WeakWork,
    /// The size of the instance for which the image is unpacked.
    limit: u64,
}

/// The identity of a regular file when it was opened.
#[derive(Debug, Clone, Copy)]
struct Known {
    key: (FileId, ImageRole),
    /// True if its timestamps were old enough to reveal the next change.
    settled: bool,
}

#[derive(Debug)]
struct State {
    cache: Cache,
    flights: HashMap<(FileId, ImageRole), Flight>,
    /// The number of bytes that running unpackers may use.
    in_flight: u64,
}

struct Inner<U> {
    unpackers: U,
    budget: Budget,
    built_in: BuiltIn,
    probe: RefCell<Option<Arc<StoredImage>>>,
    /// The state, which is never borrowed across an await.
    state: RefCell<State>,
}

/// Images by the files they come from; see the module's documentation.
pub struct ImageStore<U> {
    inner: Rc<Inner<U>>,
}

impl<U> Clone for ImageStore<U> {
    fn clone(&self) -> Self {
        Self {
            inner: Rc::clone(&self.inner),
        }
    }
}

impl<U> fmt::Debug for ImageStore<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageStore")
            .field("budget", &self.inner.budget)
            .field("state", &self.inner.state)
            .finish_non_exhaustive()
    }
}

impl<U: Unpackers + 'static> ImageStore<U> {
    /// Creates an empty store. An image that is larger than `budget.kept` is
    /// used but not cached.
    pub fn new(unpackers: U, budget: Budget, probe: BuiltIn) -> Self {
        let state = State {
            cache: Cache::new(budget.kept, budget.kept_count),
            flights: HashMap::new(),
            in_flight: 0,
        };
        Self {
            inner: Rc::new(Inner {
                unpackers,
                budget,
                built_in: probe,
                probe: RefCell::new(None),
                state: RefCell::new(state),
            }),
        }
    }

    /// Returns the kernel at `source`, to be started in mode `boot` in an
    /// instance of at most `limit` bytes. Dropping the future stops the work
    /// unless others wait for it.
    ///
    /// # Errors
    /// Returns a [`StoreError`]; nothing is cached then.
    pub async fn kernel(
        &self,
        source: &ImageSource,
        access: &Arc<Access>,
        boot: BootMode,
        limit: u64,
    ) -> Result<Loaded, StoreError> {
        self.get(source, access, ImageRole::Kernel(boot), limit)
            .await
    }

    /// Returns the archive at `source`, of at most `limit` bytes.
    ///
    /// # Errors
    /// Returns the errors of [`ImageStore::kernel`].
    pub async fn initramfs(
        &self,
        source: &ImageSource,
        access: &Arc<Access>,
        limit: u64,
    ) -> Result<Loaded, StoreError> {
        self.get(source, access, ImageRole::Initramfs, limit).await
    }

    /// Returns the built-in kernel, without waiting.
    ///
    /// # Errors
    /// Returns [`StoreError::Memfile`] if no memory file can be created for it.
    pub fn probe(&self) -> Result<Loaded, StoreError> {
        let start = Instant::now();
        let kept = self.inner.probe.borrow().clone();
        let cached = kept.is_some();
        let built_in = &self.inner.built_in;
        let image = match kept {
            Some(image) => image,
            None => {
                let image = Arc::new(seal_built_in(built_in)?);
                self.inner.probe.replace(Some(Arc::clone(&image)));
                image
            }
        };
        let info = ImageInfo::new(&image, built_in.name.into(), cached, start.elapsed());
        Ok(Loaded { image, info })
    }

    /// Returns the counters of the store.
    pub fn counters(&self) -> CacheCounters {
        let state = self.inner.state.borrow();
        CacheCounters {
            bytes_in_flight: state.in_flight,
            ..state.cache.counters()
        }
    }

    async fn get(
        &self,
        source: &ImageSource,
        access: &Arc<Access>,
        role: ImageRole,
        limit: u64,
    ) -> Result<Loaded, StoreError> {
        let start = Instant::now();
        let opened = open(source, access).await?;
        let Done { image, known } = self.inner.obtain(opened, role, limit).await?;
        sizes::expect_fit(&image, limit)?;
        let info = ImageInfo::new(&image, source.to_string().into(), known, start.elapsed());
        Ok(Loaded { image, info })
    }
}

/// Opens `source` on a thread that may block.
async fn open(source: &ImageSource, access: &Arc<Access>) -> Result<Opened, StoreError> {
    let (source, access) = (source.clone(), Arc::clone(access));
    let opened = spawn_blocking(move || source.open(&access)).await?;
    Ok(opened.map_err(Arc::new)?)
}

fn seal_built_in(built_in: &BuiltIn) -> Result<StoredImage, StoreError> {
    let output = Unsealed::new(built_in.bytes.len() as u64)?;
    let writer = std::fs::File::from(output.writer()?);
    std::os::unix::fs::FileExt::write_all_at(&writer, built_in.bytes, 0)?;
    drop(writer);
    let (file, _) = output.seal(built_in.content.output_size)?;
    let role = ImageRole::Kernel(built_in.boot);
    Ok(StoredImage::new(file, role, built_in.content.clone()))
}

impl<U: Unpackers + 'static> Inner<U> {
    /// Finds the opened image in the cache, joins work on it, or starts work.
    async fn obtain(
        self: &Rc<Self>,
        opened: Opened,
        role: ImageRole,
        limit: u64,
    ) -> Result<Done, StoreError> {
        let Some(id) = opened.id else {
            let room = self.budget.in_flight - self.state.borrow().in_flight;
            let job = sizes::job_for_stream(role, limit, room);
            let charge = self.charge(job.limits.output)?;
            return self.unpack(opened.fd, None, job, charge).await;
        };
        let job = sizes::job_for_file(role, limit, id.size())?;
        let known = Known {
            key: (id, role),
            settled: id.has_settled(SystemTime::now()),
        };
        if let Some(image) = self.look_up(known) {
            return Ok(Done { image, known: true });
        }
        let work = match self.join(known, limit) {
            Some(work) => work,
            None => self.begin(opened.fd, known, job, limit)?,
        };
        work.await
    }

    fn look_up(&self, known: Known) -> Option<Arc<StoredImage>> {
        let mut state = self.state.borrow_mut();
        let image = state.cache.by_file(known.key)?;
        state.cache.counters.hits_by_file += 1;
        Some(image)
    }

    /// Returns work on the same state of the same file that was started for an
    /// instance at least as large, since its size limit applies here as well.
    fn join(&self, known: Known, limit: u64) -> Option<Work> {
        let mut state = self.state.borrow_mut();
        let flight = state.flights.get(&known.key)?;
        if flight.limit < limit {
            return None;
        }
        let work = flight.work.upgrade()?;
        if work.peek().is_some() {
            return None;
        }
        state.cache.counters.joined += 1;
        Some(work)
    }

    fn begin(
        self: &Rc<Self>,
        fd: OwnedFd,
        known: Known,
        job: Job,
        limit: u64,
    ) -> Result<Work, StoreError> {
        let charge = self.charge(sizes::in_flight(&job, known.key.0.size()))?;
        let inner = Rc::clone(self);
        let work = async move { inner.unpack(fd, Some(known), job, charge).await };
        let work = work.boxed_local().shared();
        // A file that changed just now may change again unnoticed, so its work
        // is not shared.
        if known.settled
            && let Some(weak) = work.downgrade()
        {
            let flight = Flight { work: weak, limit };
            let flights = &mut self.state.borrow_mut().flights;
            flights.retain(|_, flight| flight.work.upgrade().is_some());
            flights.insert(known.key, flight);
        }
        Ok(work)
    }

    /// Reserves `needed` bytes until the returned guard is dropped.
    fn charge(self: &Rc<Self>, needed: u64) -> Result<Charge<U>, StoreError> {
        let mut state = self.state.borrow_mut();
        let Budget {
            in_flight: budget, ..
        } = self.budget;
        let in_flight = state.in_flight;
        if needed > budget - in_flight {
            return Err(StoreError::InFlight {
                needed,
                in_flight,
                budget,
            });
        }
        state.in_flight += needed;
        Ok(Charge {
            inner: Rc::clone(self),
            bytes: needed,
            finished: false,
        })
    }

    async fn unpack(
        self: &Rc<Self>,
        fd: OwnedFd,
        known: Option<Known>,
        job: Job,
        mut charge: Charge<U>,
    ) -> Result<Done, StoreError> {
        let sealed = self.unpack_sealed(&fd, known, job).await;
        let (done, late) = match sealed {
            Ok((image, late)) => (Ok(self.keep(image, known).await), late),
            Err(error) => {
                self.state.borrow_mut().cache.counters.misses += 1;
                (Err(error), None)
            }
        };
        charge.finished = true;
        if let (Ok(done), Some(late)) = (&done, late) {
            let (inner, image) = (Rc::clone(self), Arc::clone(&done.image));
            spawn_local(async move {
                // Its process uses what it was charged for until then.
                let _charge = charge;
                if let Some(hash) = late.await {
                    image.learn(hash);
                    inner.unite(&image).await;
                }
            });
        }
        done
    }

    /// Finds out whether an image that was cached without its hash has the content of
    /// another one, and keeps only that.
    async fn unite(&self, image: &Arc<StoredImage>) {
        let alike = self.state.borrow().cache.alike(image);
        if let Some(held) = alike
            && compare::are_equal(image, &held).await.unwrap_or(false)
        {
            self.state.borrow_mut().cache.merge(image, &held);
        }
    }

    /// Has the image unpacked; trusts nothing in the answer that was not
    /// checked against the sealed file.
    async fn unpack_sealed(
        &self,
        fd: &OwnedFd,
        known: Option<Known>,
        job: Job,
    ) -> Result<(StoredImage, Option<LateHash>), StoreError> {
        let output = Unsealed::new(job.limits.output)?;
        let (image, writer) = (fd.try_clone()?, output.writer()?);
        let (content, late) = self.unpackers.unpack_early(job, image, writer).await?;
        if let Some(Known { key: (id, _), .. }) = known
            && (FileId::of(fd)? != id || content.input_size != id.size())
        {
            return Err(StoreError::Changing);
        }
        let (file, len) = output.seal(content.output_size)?;
        content.check(&job, len)?;
        Ok((StoredImage::new(file, job.role, content), late))
    }

    /// Caches `image`, or uses a cached one that is equal to it.
    async fn keep(&self, image: StoredImage, known: Option<Known>) -> Done {
        let image = Arc::new(image);
        let key = known.filter(|known| known.settled).map(|known| known.key);
        let alike = {
            let cache = &mut self.state.borrow_mut().cache;
            cache.counters.bytes_read += image.content().input_size;
            let unpacked = image.kernel().is_some_and(|k| k.was_unpacked());
            cache.counters.decompressions += u64::from(unpacked);
            cache.alike(&image)
        };
        if let Some(held) = alike {
            let is_equal = compare::are_equal(&image, &held).await;
            let Ok(is_equal) = is_equal else {
                // It belongs to its guest alone: a later one finds the other.
                self.state.borrow_mut().cache.counters.misses += 1;
                return Done {
                    image,
                    known: false,
                };
            };
            if is_equal {
                let cache = &mut self.state.borrow_mut().cache;
                cache.counters.hits_by_content += 1;
                cache.insert_again(&held, key);
                return Done {
                    image: held,
                    known: true,
                };
            }
            let hash = image.sha256();
            log::warn!("two different images were both reported with the SHA-256 {hash}");
        }
        let cache = &mut self.state.borrow_mut().cache;
        cache.counters.misses += 1;
        cache.insert(&image, key);
        Done {
            image,
            known: false,
        }
    }
}

/// Bytes reserved for an unpacker, released when its work ends.
struct Charge<U> {
    inner: Rc<Inner<U>>,
    bytes: u64,
    finished: bool,
}

impl<U> Drop for Charge<U> {
    fn drop(&mut self) {
        let mut state = self.inner.state.borrow_mut();
        state.in_flight -= self.bytes;
        state.cache.counters.abandoned += u64::from(!self.finished);
    }
}

#[cfg(test)]
mod tests;
