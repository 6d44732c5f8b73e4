//! Debian's kernels, and which of them a run boots.
//!
//! Two are booted by every scenario. Of all of them, one has its turn in the
//! scenarios of `rotation` and `pauses`: a real-time kernel, those that
//! `MKVMM_KERNELS` names, or all with `MKVMM_KERNELS=all`
//! (`scripts/test --all-kernels`).

use std::env;

/// The kernels of every scenario, which are there in any case.
pub const BASE: [&str; 2] = ["6.1", "6.12"];
/// All kernels; without a flavour it is the cloud kernel.
const ALL: [&str; 6] = [
    "6.1",
    "6.1-generic",
    "6.1-rt",
    "6.12",
    "6.12-generic",
    "6.12-rt",
];
/// Which of them have their turn: names with commas between them, or `all`.
pub const VARIABLE: &str = "MKVMM_KERNELS";
/// The kernel that has its turn unless another is named: of another flavour than
/// those of every scenario. The same in every run, so that a failure repeats.
const USUAL: &str = "6.1-rt";

/// The kernels that have their turn.
///
/// # Panics
/// When [`VARIABLE`] names one that there is not.
pub fn in_turn() -> Vec<&'static str> {
    let find = |name: &str| {
        let found = ALL.into_iter().find(|known| *known == name);
        found.unwrap_or_else(|| panic!("{VARIABLE}={name}: only {} are there", ALL.join(", ")))
    };
    match env::var(VARIABLE).ok().filter(|names| !names.is_empty()) {
        Some(names) if names == "all" => ALL.to_vec(),
        Some(names) => names.split(',').map(find).collect(),
        None => vec![USUAL],
    }
}

/// Whether all of them have their turn.
pub fn are_all() -> bool {
    in_turn().len() == ALL.len()
}

/// What `uname -r` says of a kernel: how it begins, and how it ends.
pub fn release(kernel: &str) -> (String, &'static str) {
    let (version, end) = match kernel.split_once('-') {
        Some((version, "rt")) => (version, "-rt-amd64"),
        Some((version, _generic)) => (version, "-amd64"),
        None => (kernel, "-cloud-amd64"),
    };
    (format!("{version}."), end)
}
