//! Checks of the manifest that each guest read from sysfs.

use std::fs;

use mkvmm_guest_images::pure::manifest::{Manifest, SETUP_DATA_TYPE};
use mkvmm_guest_images::pure::range::Range;

use crate::guest::{Form, Guest};
use crate::guest_report::GuestReport;
use crate::launch::Launch;

/// Calls `check` with each guest's manifest.
fn for_each_manifest(launch: &Launch, check: impl Fn(&Guest, &GuestReport, &Manifest<'_>)) {
    for (guest, report) in launch.guests() {
        let ours = |node: &&(u32, Vec<u8>)| node.0 == SETUP_DATA_TYPE;
        let found: Vec<_> = report.setup_data.iter().filter(ours).collect();
        assert_eq!(found.len(), 1, "{}", guest.name);
        let manifest = Manifest::new(&found[0].1);
        let manifest = manifest.unwrap_or_else(|why| panic!("{}: it {why}", guest.name));
        check(guest, &report, &manifest);
    }
}

pub fn the_manifest_names_the_instance(launch: &Launch) {
    for_each_manifest(launch, |guest, report, manifest| {
        assert_eq!(manifest.name, guest.name);
        assert_eq!(manifest.cpus, guest.cpus, "{}", guest.name);
        assert_eq!(manifest.cmdline, guest.cmdline(), "{}", guest.name);
        assert_eq!(manifest.cmdline, report.cmdline, "{}", guest.name);
        // The tree names regions mk-instance-ID-NAME-region-N.
        let region = format!("mk-instance-{}-{}-region-0", manifest.id, guest.name);
        let found = launch.report.tree.iter().any(|l| l.name == region);
        assert!(found, "no {region}\n{}", launch.run);
    });
}

pub fn the_manifest_equals_the_tree_announced(launch: &Launch) {
    for_each_manifest(launch, |guest, _report, manifest| {
        let name = guest.name;
        assert_eq!(inclusive(manifest.pool), launch.report.pool(), "{name}");
        let chunk = |chunk: Option<Range>| inclusive(chunk.expect("a range"));
        let chunks: Vec<_> = manifest.chunks().map(chunk).collect();
        assert_eq!(chunks, launch.report.regions(name), "{name}");
        let initramfs = manifest.initramfs.expect("every guest has one").0;
        for (piece, range) in [
            ("low window", manifest.low_window),
            ("control block", manifest.control_block),
            ("kernel", manifest.kernel),
            ("initramfs", initramfs),
        ] {
            let announced = launch.report.pieces(name, piece);
            let announced: Vec<_> = announced.iter().map(|l| (l.start, l.last)).collect();
            assert_eq!([inclusive(range)], *announced, "{name}: {piece}");
        }
    });
}

pub fn the_manifest_has_the_images_exact_facts(launch: &Launch) {
    for_each_manifest(launch, |guest, _report, manifest| {
        let name = guest.name;
        let file = fs::metadata(guest.initramfs_path(&launch.images)).expect("it was loaded");
        let (_, size) = manifest.initramfs.expect("every guest has one");
        if guest.has_one_archive() {
            assert_eq!(size, file.len(), "{name}");
        } else {
            // The others follow it.
            assert!(size > file.len(), "{name}");
        }
        let offset = manifest.entry - manifest.kernel.start;
        // The boot protocol's 64-bit entry point of a bzImage is at offset 512.
        match guest.form {
            Form::InGuest => assert_eq!(offset, 0x200, "{name}"),
            Form::BzImage | Form::Elf => assert!(manifest.entry < manifest.kernel.end, "{name}"),
        }
    });
}

/// Returns the first and last byte, as in the tree.
fn inclusive(range: Range) -> (u64, u64) {
    (range.start, range.end - 1)
}
