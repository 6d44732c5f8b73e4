//! Finds which kernel module is behind `/dev/kvm`.
//!
//! KVM itself does not tell. Its back ends are separate modules. A built-in
//! module has a directory in `/sys/module` whether or not it supports the
//! processor, so if there are several, the processor's features decide.

use std::collections::BTreeSet;
use std::fs;

/// The common prefix of the names of KVM's back ends.
const PREFIX: &str = "kvm_";

/// Returns `kvm_intel`, `kvm_amd`, `kvm_pvm` or another name; `None` if it is
/// unknown.
pub fn look() -> Option<String> {
    let mut modules = BTreeSet::new();
    if let Ok(entries) = fs::read_dir("/sys/module") {
        let names = entries.flatten().map(|entry| entry.file_name());
        modules.extend(names.filter_map(|name| name.into_string().ok()));
    }
    if let Ok(text) = fs::read_to_string("/proc/modules") {
        modules.extend(loaded(&text).map(str::to_owned));
    }
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    choose(&modules, &cpuinfo)
}

/// Returns the module names in the text of `/proc/modules`.
fn loaded(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.split(' ').next())
}

fn choose(modules: &BTreeSet<String>, cpuinfo: &str) -> Option<String> {
    let kinds: Vec<&String> = modules.iter().filter(|m| m.starts_with(PREFIX)).collect();
    if let [only] = kinds.as_slice() {
        return Some((*only).clone());
    }
    let has_flag = |flag: &str| {
        let mut lines = cpuinfo.lines();
        let flags = lines.find(|line| line.starts_with("flags"));
        flags.is_some_and(|line| line.split_whitespace().any(|word| word == flag))
    };
    let is_there = |name: &str| kinds.iter().any(|kind| *kind == name);
    let by_flag = [("vmx", "kvm_intel"), ("svm", "kvm_amd")];
    let found = by_flag
        .into_iter()
        .find(|(flag, name)| has_flag(flag) && is_there(name));
    if let Some((_, name)) = found {
        return Some(name.to_owned());
    }
    // The processor has neither extension: a back end that needs none remains,
    // if there is exactly one.
    let needs = |kind: &&&String| by_flag.iter().all(|(_, name)| kind.as_str() != *name);
    let mut others = kinds.iter().filter(needs);
    match (others.next(), others.next()) {
        (Some(only), None) => Some((*only).clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(modules: &str, flags: &str) -> Option<String> {
        let modules = modules.split(' ').map(str::to_owned).collect();
        choose(
            &modules,
            &format!("processor\t: 0\nflags\t\t: fpu {flags}\n"),
        )
    }

    #[test]
    fn one_back_end_is_it_and_of_several_the_processor_decides() {
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(kind("kvm kvm_pvm loop", ""), some("kvm_pvm"));
        assert_eq!(kind("kvm kvm_amd kvm_intel", "svm"), some("kvm_amd"));
        assert_eq!(kind("kvm kvm_amd kvm_intel", "vmx"), some("kvm_intel"));
        assert_eq!(kind("kvm kvm_intel kvm_pvm", ""), some("kvm_pvm"));
        assert_eq!(kind("kvm kvm_amd kvm_intel", ""), None);
        assert_eq!(kind("kvm", "vmx"), None);
        let text = "kvm_intel 368640 0 - Live 0x0\nkvm 1028096 1 kvm_intel, Live 0x0\n";
        assert_eq!(loaded(text).collect::<Vec<_>>(), ["kvm_intel", "kvm"]);
    }
}
