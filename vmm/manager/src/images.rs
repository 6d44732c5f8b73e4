//! The contents loaded into an instance: unpacked images and a command line.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use mkpool::AddrRange;
use mkvmm_api::{ImagesSpec, KernelSource, Source};
use mkvmm_base::cmdline::DEFAULT_LINUX;
use mkvmm_base::image_facts::KernelFacts;
use mkvmm_base::unpacking::{ImageRole, Job, UnpackErrorClass, Unpacked};
use mkvmm_base::{Class, Diagnose, InstanceName, chain, is_shortage};
use mkvmm_images::{
    Batch, ImageInfo, ImageSource, Initramfs, LateHash, Loaded, SizeError, StoreError, StoredImage,
    Unpackers, UnpackersError,
};
use mkvmm_wire::messages::{UnpackOrder, UnpackReport};
use rustix::fs::FallocateFlags;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::child::{self, AskError, More, Question, Role};
use crate::host::Host;
use crate::journal::file::JournalError;
use crate::journal::record::{self, LoadedRecord};

/// How long an unpacker may take, whatever the image: it has 60 s of CPU time,
/// and may have to wait for others'.
const UNPACKING: Duration = Duration::from_secs(180);
/// Bytes of its file that it reads in each further second: 1 MiB, as slow as
/// file systems over a network are on a bad day.
const UNPACKED_PER_SECOND: u64 = 1 << 20;

/// The contents loaded into an instance: the parameters of `load`.
#[derive(Debug, Clone)]
pub struct Images {
    kernel: Arc<StoredImage>,
    /// The facts about the kernel, checked against its file.
    facts: KernelFacts,
    /// True if the kernel is the built-in probe, whose command line describes
    /// its instance.
    is_probe: bool,
    initramfs: Option<Initramfs>,
    /// The descriptions of the files, the kernel's first.
    infos: Vec<ImageInfo>,
    cmdline: String,
    /// The specification as the user wrote it.
    spec: ImagesSpec,
}

impl Images {
    /// Takes over the images of a record, whose files the keeper has held: the
    /// kernel's, then those of the archives.
    ///
    /// # Errors
    /// Returns a [`JournalError`] if they do not match.
    pub(crate) fn adopt(record: &LoadedRecord, files: Vec<OwnedFd>) -> Result<Self, JournalError> {
        let mismatch = || JournalError::Contradiction {
            what: "images that do not match their files".to_owned(),
        };
        let LoadedRecord {
            contents, paths, ..
        } = record;
        if files.len() != contents.len() || paths.len() != contents.len() {
            return Err(mismatch());
        }
        let images = files.into_iter().zip(contents);
        let images =
            images.map(|(file, (role, content))| StoredImage::adopt(file, *role, content.clone()));
        let images: Vec<Arc<StoredImage>> = images.map(Arc::new).collect();
        let infos = images.iter().zip(paths);
        let infos =
            infos.map(|(image, path)| ImageInfo::new(image, path.clone(), true, Duration::ZERO));
        let infos = infos.collect();
        let mut images = images.into_iter();
        let kernel = images.next().ok_or_else(mismatch)?;
        let facts = kernel.kernel().cloned().ok_or_else(mismatch)?;
        Ok(Self {
            kernel,
            facts,
            is_probe: record.is_probe,
            initramfs: Initramfs::new(images.collect()),
            infos,
            cmdline: record.cmdline.clone(),
            spec: record::images_of(record)?,
        })
    }

    /// Returns the kernel.
    pub fn kernel(&self) -> &Arc<StoredImage> {
        &self.kernel
    }

    /// Returns the facts about the kernel.
    pub fn facts(&self) -> &KernelFacts {
        &self.facts
    }

    /// Returns the archives of the initramfs, each with its offset from the
    /// start.
    pub fn archives(&self) -> impl Iterator<Item = (u64, &Arc<StoredImage>)> {
        self.initramfs.iter().flat_map(Initramfs::parts)
    }

    /// Returns the size of the whole initramfs in bytes.
    pub fn initramfs_size(&self) -> Option<u64> {
        self.initramfs.as_ref().map(Initramfs::size)
    }

    /// Returns the descriptions of the kernel's file and of the archives.
    pub fn infos(&self) -> &[ImageInfo] {
        &self.infos
    }

    /// Returns whether the kernel is the built-in probe.
    pub(crate) fn is_probe(&self) -> bool {
        self.is_probe
    }

    /// Returns the command line without what is added for an instance.
    pub(crate) fn cmdline(&self) -> &str {
        &self.cmdline
    }

    /// Returns the purposes of the kernel and of the archives, and the unpackers'
    /// reports on them.
    pub(crate) fn contents(&self) -> Vec<(ImageRole, Unpacked)> {
        let archives = self.archives().map(|(_, archive)| archive);
        std::iter::once(&self.kernel)
            .chain(archives)
            .map(|image| (image.role(), image.report()))
            .collect()
    }

    /// Returns the specification as the user wrote it.
    pub fn spec(&self) -> &ImagesSpec {
        &self.spec
    }

    /// Returns the command line that the kernel reads; for the probe it begins
    /// with what to check.
    pub fn full_cmdline(
        &self,
        name: &InstanceName,
        pool: AddrRange,
        regions: &[AddrRange],
    ) -> String {
        if !self.is_probe {
            return self.cmdline.clone();
        }
        let span = |r: &AddrRange| format!("{:#x}-{:#x}", r.start(), r.end());
        let chunks: Vec<String> = regions.iter().map(span).collect();
        let mut words = vec![
            format!("name={name}"),
            format!("pool={}", span(&pool)),
            format!("chunks={}", chunks.join(",")),
        ];
        if let Some(initramfs) = &self.initramfs {
            let (size, sum) = (initramfs.size(), initramfs.crc32());
            words.push(format!("initrd={size}:{sum:08x}"));
        }
        if !self.cmdline.is_empty() {
            words.push(self.cmdline.clone());
        }
        words.join(" ")
    }
}

/// A reason why an image was refused.
#[derive(Debug, thiserror::Error)]
#[error("{what} {path}")]
pub struct ImageError {
    /// The role of the file: "kernel" or "initramfs".
    pub what: &'static str,
    /// The path as given.
    pub path: String,
    /// The underlying error.
    #[source]
    pub source: StoreError,
}

impl ImageError {
    /// Returns the class of what no shortage of the host has brought about.
    fn own_class(&self) -> Class {
        match &self.source {
            StoreError::Size(SizeError::Empty) => Class::File,
            StoreError::Size(_) => Class::NoRoom,
            StoreError::Refused(error) => match error.class() {
                UnpackErrorClass::Resources => Class::VmmFailed,
                _ => Class::File,
            },
            StoreError::InFlight { .. } => Class::Overload,
            StoreError::Unpackers(UnpackersError::Crowded { .. }) => Class::Overload,
            StoreError::Source(_) | StoreError::Changing => Class::File,
            _ => Class::VmmFailed,
        }
    }
}

impl Diagnose for ImageError {
    fn class(&self) -> Class {
        match self.own_class() {
            Class::VmmFailed | Class::File if is_shortage(&self.source) => Class::Exhausted,
            class => class,
        }
    }

    fn hint(&self) -> Option<String> {
        let is_crowd = self.class() == Class::Overload;
        is_crowd.then(|| "try again when other images have been read".to_owned())
    }
}

/// Reads the files of `spec` for an instance of `memory` bytes.
///
/// # Errors
/// Returns an [`ImageError`] for the first image that cannot be used.
pub async fn read(
    spec: ImagesSpec,
    memory: u64,
    batch: &mut Batch<UnpackerChildren>,
    probe: impl FnOnce() -> Result<Loaded, StoreError>,
) -> Result<Images, ImageError> {
    let is_probe = spec.kernel == KernelSource::Probe;
    let kernel = match &spec.kernel {
        KernelSource::Probe => probe(),
        KernelSource::File(source) => {
            let boot = spec.boot.unwrap_or_default();
            batch.kernel(&image_source(source), boot, memory).await
        }
    };
    let Loaded { image, info } = kernel.map_err(image_error("kernel", &spec.kernel))?;
    let (mut archives, mut infos) = (Vec::new(), vec![info]);
    for source in &spec.initrd {
        let archive = batch.initramfs(&image_source(source), memory).await;
        let archive = archive.map_err(image_error("initramfs", source))?;
        archives.push(archive.image);
        infos.push(archive.info);
    }
    let default_cmdline = if is_probe { "" } else { DEFAULT_LINUX };
    let cmdline = spec
        .cmdline
        .as_deref()
        .unwrap_or(default_cmdline)
        .to_owned();
    let not_a_kernel = || StoreError::Changing;
    let facts = image.kernel().cloned().ok_or_else(not_a_kernel);
    Ok(Images {
        facts: facts.map_err(image_error("kernel", &spec.kernel))?,
        kernel: image,
        is_probe,
        initramfs: Initramfs::new(archives),
        infos,
        cmdline,
        spec,
    })
}

fn image_source(source: &Source) -> ImageSource {
    match source {
        Source::Path(path) => ImageSource::Path(path.clone()),
        Source::Fd(fd) => ImageSource::Fd(*fd),
    }
}

fn image_error(what: &'static str, path: &impl ToString) -> impl FnOnce(StoreError) -> ImageError {
    let path = path.to_string();
    move |source| ImageError { what, path, source }
}

/// Runs unpackers as children of this process, one for each image.
#[derive(Debug, Clone)]
pub struct UnpackerChildren {
    host: Rc<Host>,
    /// Limits the number of running unpackers.
    room: Arc<Semaphore>,
    limit: usize,
}

/// An unpacker that has not hashed its image yet, and what it takes up.
struct Hashing {
    more: More<UnpackOrder, UnpackReport>,
    _place: OwnedSemaphorePermit,
}

impl UnpackerChildren {
    /// Creates unpackers on `host`, of which at most `limit` run at once.
    pub fn new(host: Rc<Host>, limit: usize) -> Self {
        Self {
            host,
            room: Arc::new(Semaphore::new(limit)),
            limit,
        }
    }
}

impl Unpackers for UnpackerChildren {
    async fn unpack(
        &self,
        job: Job,
        image: OwnedFd,
        output: OwnedFd,
    ) -> Result<Unpacked, UnpackersError> {
        let (unpacked, hashing) = self.unpacked(job, image, output).await?;
        match hashing {
            None => Ok(unpacked),
            Some(Hashing { more, _place }) => {
                let UnpackReport(complete) = more.answer().await.map_err(lost)?;
                let sha256 = complete?.sha256;
                Ok(Unpacked { sha256, ..unpacked })
            }
        }
    }

    async fn unpack_early(
        &self,
        job: Job,
        image: OwnedFd,
        output: OwnedFd,
    ) -> Result<(Unpacked, Option<LateHash>), UnpackersError> {
        if self.host.children.keeper.is_some() {
            // The journal of a VMM with a keeper has the hash.
            return Ok((self.unpack(job, image, output).await?, None));
        }
        let (unpacked, hashing) = self.unpacked(job, image, output).await?;
        let late = hashing.map(|Hashing { more, _place }| {
            async move {
                let _place = _place;
                let complete = more.answer().await.map_err(lost);
                let complete = complete.and_then(|UnpackReport(complete)| Ok(complete?));
                let sha256 = complete.map(|complete| complete.sha256);
                sha256
                    .inspect_err(|error| log::warn!("an image has no SHA-256: {}", chain(error)))
                    .ok()
            }
            .boxed_local()
        });
        Ok((unpacked, late))
    }
}

impl UnpackerChildren {
    async fn unpacked(
        &self,
        job: Job,
        image: OwnedFd,
        output: OwnedFd,
    ) -> Result<(Unpacked, Option<Hashing>), UnpackersError> {
        // There is no timeout: one image may take as long as its limits allow.
        let limit = self.limit;
        let crowded = |_no_room| UnpackersError::Crowded { limit };
        let place = Arc::clone(&self.room).try_acquire_owned();
        let place = place.map_err(crowded)?;
        let size = size_of_file(&image);
        let order = UnpackOrder(job);
        let mut answer = self.ask(&order, &image, &output, size).await;
        if let Err(error) = &answer
            && error.is_from_outside()
            && size.is_some()
        {
            log::warn!("an image is unpacked once more: {}", chain(error));
            // As it was: what the first one wrote is in nobody's way.
            empty(output.try_clone().map_err(lost)?).await?;
            answer = self.ask(&order, &image, &output, size).await;
        }
        let (UnpackReport(unpacked), more) = answer.map_err(lost)?;
        let hashing = more.map(|more| Hashing {
            more,
            _place: place,
        });
        Ok((unpacked?, hashing))
    }

    async fn ask(
        &self,
        order: &UnpackOrder,
        image: &OwnedFd,
        output: &OwnedFd,
        size: Option<u64>,
    ) -> Result<(UnpackReport, Option<More<UnpackOrder, UnpackReport>>), AskError> {
        let question = Question {
            role: Role::Unpacker,
            label: "image",
            message: order,
            descriptors: &[image.as_fd(), output.as_fd()],
            // Whoever writes into a pipe may take as long as they like.
            limit: size.map(|size| UNPACKING + Duration::from_secs(size / UNPACKED_PER_SECOND)),
        };
        let is_unhashed = |UnpackReport(answer): &UnpackReport| {
            answer
                .as_ref()
                .is_ok_and(|answer| !answer.sha256.is_known())
        };
        child::ask_early(&self.host.children, &question, is_unhashed).await
    }
}

fn lost(error: impl std::error::Error + Send + Sync + 'static) -> UnpackersError {
    UnpackersError::Lost(Arc::new(error))
}

/// Returns the size of a regular file; `None` of what can be read once only.
fn size_of_file(image: &OwnedFd) -> Option<u64> {
    let stat = rustix::fs::fstat(image).ok()?;
    let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
    is_file.then(|| u64::try_from(stat.st_size).unwrap_or(0))
}

/// Makes a memory file read as zero, where that may take its time.
async fn empty(output: OwnedFd) -> Result<(), UnpackersError> {
    let punch = move || {
        let size = rustix::fs::fstat(&output)?.st_size;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match u64::try_from(size) {
            Ok(size) if size > 0 => rustix::fs::fallocate(&output, flags, 0, size),
            _ => Ok(()),
        }
    };
    let punched = tokio::task::spawn_blocking(punch).await;
    punched.map_err(lost)?.map_err(lost)
}
