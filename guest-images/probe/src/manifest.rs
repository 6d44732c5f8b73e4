//! Checks that the manifest is in both places, and agrees with all other
//! information.

use crate::Probe;
use crate::checks::{LOW_WINDOW, Mem};
use crate::pure::e820::USABLE;
use crate::pure::manifest::{END_LEAF, FIRST_LEAF, LEAF_STEP, Manifest, SIGNATURE};
use crate::pure::range::{Range, subtract};
use crate::service::cpuid;

/// The contents of mkvmm's CPUID leaves.
struct Announced {
    pool: Option<Range>,
    manifest: Option<Range>,
    version: u32,
}

/// Finds the leaves, which may follow those of other hypervisors.
fn announced() -> Option<Announced> {
    let first = (FIRST_LEAF..END_LEAF).step_by(LEAF_STEP).find(|&leaf| {
        let found = cpuid(leaf);
        let name = [found.ebx, found.ecx, found.edx].map(u32::to_le_bytes);
        name.as_flattened() == SIGNATURE && found.eax >= leaf + 2
    })?;
    let (pool, manifest) = (cpuid(first + 1), cpuid(first + 2));
    let wide = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Some(Announced {
        pool: Range::sized(wide(pool.eax, pool.ebx), wide(pool.ecx, pool.edx)),
        manifest: Range::sized(wide(manifest.eax, manifest.ebx), manifest.ecx.into()),
        version: manifest.edx,
    })
}

impl Probe {
    /// Reads the manifest at the address in CPUID and compares it with
    /// everything else.
    pub fn check_manifest(&mut self) {
        let Some(announced) = announced() else {
            bad!(self, "manifest is not announced by CPUID");
            return;
        };
        let bytes = announced.manifest.and_then(|at| self.memory.bytes(at));
        let Some((place, bytes)) = announced.manifest.zip(bytes) else {
            bad!(self, "manifest is out of reach");
            return;
        };
        let manifest = match Manifest::new(bytes) {
            Ok(manifest) => manifest,
            Err(complaint) => {
                bad!(self, "manifest {} {complaint}", Mem(place));
                return;
            }
        };
        let before = self.problems;
        self.agree("version", manifest.version == announced.version);
        self.agree("address", manifest.address == place.start);
        let node = self.boot_params.manifest;
        self.agree("place in setup_data", node == Some(place));
        self.agree("pool in CPUID", announced.pool == Some(manifest.pool));
        // Leaf 1, EBX 23:16 is the number of logical processors.
        let cpus = cpuid(1).ebx >> 16 & 0xff;
        self.agree("number of CPUs", manifest.cpus == cpus);
        self.check_words_of(&manifest);
        self.check_places_of(&manifest);
        self.check_map_of(&manifest);
        self.check_channels_of(&manifest);
        if self.problems == before {
            say!(
                "manifest version {} id {} {} pool {} chunks {} ok",
                manifest.version,
                manifest.id,
                Mem(place),
                Mem(manifest.pool),
                manifest.chunks().count()
            );
        }
    }

    /// Checks that channels are outside of the chunks, and notes what exists.
    fn check_channels_of(&mut self, manifest: &Manifest<'_>) {
        for channel in manifest.channels() {
            let overlaps = |it: &Range| channel.is_some_and(|channel| channel.overlaps(*it));
            let is_outside = !self.chunks.as_slice().iter().any(overlaps);
            self.agree("channels", channel.is_some() && is_outside);
            if let Some(channel) = channel {
                say!("channel {}", Mem(channel));
            }
            self.channels.push(channel);
        }
        self.channels.sort();
    }

    fn agree(&mut self, what: &str, same: bool) {
        if !same {
            bad!(self, "manifest disagrees about the {what}");
        }
    }

    /// Compares the manifest with the command line.
    fn check_words_of(&mut self, manifest: &Manifest<'_>) {
        self.agree("name", self.name == Some(manifest.name));
        self.agree("pool", self.pool == Some(manifest.pool));
        let own = self.chunks.as_slice().iter().copied().map(Some);
        self.agree("chunks", manifest.chunks().eq(own));
        self.agree("command line", manifest.cmdline == self.cmdline);
    }

    /// Compares the manifest with the actual places.
    fn check_places_of(&mut self, manifest: &Manifest<'_>) {
        let at = self.boot_params.cmdline_addr();
        self.agree("command line's address", manifest.cmdline_address == at);
        let image = self.memory.image;
        let kernel = subtract(image, &[manifest.kernel]).next().is_none();
        self.agree("kernel", kernel && manifest.entry == image.start);
        let initramfs = manifest.initramfs.map(|(place, size)| {
            let used = Range::sized(place.start, size);
            used.filter(|used| used.end <= place.end)
        });
        let there = self.boot_params.initramfs().map(Some);
        self.agree("initramfs", initramfs == there);
    }

    /// Compares the manifest with the e820: RAM is all of our chunks except the
    /// low window's backing, the control block and allocations. That RAM lies
    /// in our chunks is checked elsewhere, so equal sizes mean equal sets.
    fn check_map_of(&mut self, manifest: &Manifest<'_>) {
        let mut own: u64 = manifest.chunks().flatten().map(Range::size).sum();
        let pieces = [
            ("low window", Some(manifest.low_window)),
            ("control block", Some(manifest.control_block)),
        ];
        let allocations = || manifest.allocations().map(|range| ("allocations", range));
        let withheld = || pieces.into_iter().chain(allocations());
        for (nth, (what, range)) in withheld().enumerate() {
            let Some(range) = range else {
                self.agree(what, false);
                continue;
            };
            let foreign = subtract(range, self.chunks.as_slice()).next();
            let shared = withheld()
                .take(nth)
                .any(|(_, r)| r.is_some_and(|r| r.overlaps(range)));
            self.agree(what, foreign.is_none() && !shared);
            own = own.saturating_sub(range.size());
        }
        let mut usable = 0;
        for entry in self.boot_params.e820().filter(|e| e.kind == USABLE) {
            let range = entry.range().filter(|range| range.start >= LOW_WINDOW);
            let Some(range) = range else { continue };
            let taken = withheld().any(|(_, r)| r.is_some_and(|r| r.overlaps(range)));
            self.agree("RAM", !taken);
            usable += range.size();
        }
        self.agree("size of the RAM", usable == own);
    }
}
