use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::getpid;

use super::usage::{parse_cpu_stat, parse_number, parse_pss, parse_resident_pages, parse_stat};
use super::*;

const V2_MOUNT: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";

const V1_MOUNTS: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";

#[test]
fn a_unified_host_has_one_directory() {
    let text = "0::/user.slice/mkvmm.service\n";
    let found = Cgroups::locate(text, V2_MOUNT).unwrap();
    let expected = "/sys/fs/cgroup/user.slice/mkvmm.service";
    assert_eq!(found.v2, Some(expected.into()));
    assert!(found.v1.is_empty());
}

#[test]
fn a_hybrid_host_has_controllers_in_their_own_trees() {
    let text = "9:name=systemd:/\n4:memory:/job/7\n2:cpu,cpuacct:/job:8\n0::/\n";
    let found = Cgroups::locate(text, V1_MOUNTS).unwrap();
    assert_eq!(found.v2, Some("/sys/fs/cgroup/unified".into()));
    let v1 = |controller| found.v1.get(&controller).map(PathBuf::as_path);
    let cpu = Path::new("/sys/fs/cgroup/cpu,cpuacct/job:8");
    assert_eq!(v1(Controller::Cpu), Some(cpu));
    assert_eq!(v1(Controller::CpuAcct), Some(cpu));
    let memory = Path::new("/sys/fs/cgroup/memory/job/7");
    assert_eq!(v1(Controller::Memory), Some(memory));
    assert_eq!(v1(Controller::Pids), None);
}

#[test]
fn a_container_sees_its_part_of_the_tree() {
    let mount = "30 23 0:26 /pod/1 /sys/fs\\040cgroup rw - cgroup2 cgroup2 rw\n";
    let found = Cgroups::locate("0::/pod/1/job\n", mount).unwrap();
    assert_eq!(found.v2, Some("/sys/fs cgroup/job".into()));
    let outside = Cgroups::locate("0::/pod/2\n", mount).unwrap_err();
    assert!(matches!(outside, CgroupError::NoHierarchy));
    let above = Cgroups::locate("0::/../pod\n", V2_MOUNT).unwrap_err();
    assert!(matches!(above, CgroupError::NoHierarchy));
}

#[test]
fn a_path_that_climbs_or_is_not_there_is_refused() {
    for path in ["/../../../../tmp", "a/../../..", "/no-such-cgroup-here"] {
        let error = Cgroups::find(&Base::Path(path.into())).unwrap_err();
        assert!(matches!(error, CgroupError::NoSuchCgroup { .. }), "{path}");
    }
}

#[test]
fn odd_content_is_an_error_and_no_panic() {
    let odd = [
        "",
        "\n",
        ":",
        "::",
        "0:",
        "0::",
        "x:y",
        "0::relative",
        " - ",
        "\u{fffd}:::",
    ];
    for membership in odd {
        for mounts in odd {
            let found = Cgroups::locate(membership, mounts);
            assert!(matches!(found, Err(CgroupError::NoHierarchy)));
        }
    }
}

#[test]
fn cpu_time_of_v2_is_in_microseconds() {
    let text = "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\n";
    assert_eq!(parse_cpu_stat(text), Some(Duration::from_millis(1500)));
    assert_eq!(parse_cpu_stat("user_usec 1\n"), None);
    assert_eq!(parse_cpu_stat("usage_usec -1\n"), None);
}

#[test]
fn cpu_time_of_a_process_adds_user_and_system_ticks() {
    let text = "7 (a) b) (c) S 1 7 7 0 -1 4194304 105 0 0 0 250 50 0 0 20 0 1 0 9 3 4";
    assert_eq!(parse_stat(text, 100), Some(Duration::from_secs(3)));
    assert_eq!(parse_stat(text, 0), None);
    let huge = format!("7 (x) S 1 7 7 0 -1 0 0 0 0 0 {0} {0} 0", u64::MAX);
    assert_eq!(parse_stat(&huge, 1), None);
    for odd in [
        "",
        ")",
        "7 (x",
        "7 (x) S 1 2 3",
        "7 (x) S 1 7 7 0 -1 0 0 0 0 0 a b",
    ] {
        assert_eq!(parse_stat(odd, 100), None, "{odd:?}");
    }
}

#[test]
fn memory_of_a_process_is_its_share() {
    let text = "5000-6000 ---p 0 00:00 0 [rollup]\nRss: 1856 kB\nPss:     246 kB\n";
    assert_eq!(parse_pss(text), Some(246 * 1024));
    assert_eq!(parse_pss("Pss: 1 MB\n"), None);
    assert_eq!(parse_pss("Pss: 99999999999999999999 kB\n"), None);
    assert_eq!(parse_resident_pages("765 409 380 5 0 93 0\n"), Some(409));
    assert_eq!(parse_resident_pages("765\n"), None);
    assert_eq!(parse_number("max\n"), None);
}

/// A temporary directory that stands in for a hierarchy.
struct Tree(PathBuf);

impl Tree {
    fn new(name: &str) -> Self {
        let name = format!("mkvmm-keeper-{}-{name}", getpid().as_raw_nonzero());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn base(&self) -> Cgroups {
        let v1 = [(Controller::Memory, self.0.clone())].into();
        Cgroups { v2: None, v1 }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
fn a_dropped_leaf_leaves_nothing_behind() {
    let tree = Tree::new("drop");
    let leaf = Leaf::create(&tree.base(), "web").unwrap();
    let directory = leaf.directories().v1[&Controller::Memory].clone();
    assert!(directory.ends_with("web"));
    assert!(directory.exists());
    drop(leaf);
    assert!(!tree.0.join("mkvmm").exists());
    assert!(tree.0.exists());
}

#[test]
fn a_leaf_leaves_its_neighbours_alone() {
    let tree = Tree::new("neighbour");
    let (web, db) = ("web", "db");
    let web = Leaf::create(&tree.base(), web).unwrap();
    let db = Leaf::create(&tree.base(), db).unwrap();
    web.remove().unwrap();
    assert!(db.directories().v1[&Controller::Memory].exists());
}

#[test]
fn a_leaf_that_is_in_use_says_so() {
    let tree = Tree::new("busy");
    let leaf = Leaf::create(&tree.base(), "web").unwrap();
    let inside = leaf.directories().v1[&Controller::Memory].join("child");
    fs::create_dir(inside).unwrap();
    let error = leaf.remove().unwrap_err();
    assert!(matches!(error, CgroupError::Remove { .. }));
}

#[test]
fn names_that_are_other_directories_are_refused() {
    let tree = Tree::new("names");
    let long = "x".repeat(201);
    for name in ["", ".", "..", "a/b", "cgroup.procs", "a\nb", &long] {
        let error = Leaf::create(&tree.base(), name).unwrap_err();
        assert!(matches!(error, CgroupError::Name { .. }), "{name:?}");
    }
    assert!(!tree.0.join("mkvmm").exists());
}

#[test]
fn a_limit_without_its_controller_is_an_error() {
    let tree = Tree::new("controller");
    let leaf = Leaf::create(&tree.base(), "web").unwrap();
    let limits = ResourceLimits {
        threads: Some(10),
        ..ResourceLimits::default()
    };
    let error = leaf.limit(&limits).unwrap_err();
    let controller = Controller::Pids;
    assert!(
        matches!(error, CgroupError::NoController { controller: found } if found == controller)
    );
}

#[test]
fn without_a_cgroup_the_process_is_asked() {
    let tree = Tree::new("fallback");
    let leaf = Leaf::create(&tree.base(), "web").unwrap();
    let cpu = leaf.cpu_time(getpid()).unwrap();
    assert_eq!(cpu.source, CpuSource::Process);
    let memory = leaf.memory(getpid()).unwrap();
    assert!(memory.bytes > 0);
    assert_ne!(memory.source, MemorySource::V1);
}
