use mkvmm_base::{Class, Diagnose};

use super::*;
use crate::reader::{from_pairs, is_flag, keys, words};

fn spec(text: &str) -> Result<InstanceSpec, SpecError> {
    text.parse()
}

/// Every key with a value that is not its default.
const EVERY_KEY: &str = "name=web,memory=64M,cpus=4,cpus-affinity=0-3,,7,order=13,violation=stop,\
     on-reboot=restart,on-panic=restart,autostart=false,console-log=/l,cgroup=/batch,cpu-limit=150,\
     memory-limit=300M,thread-limit=6,label=job=17,label=user=ada,rng=true,consoles=2,disk=/d.img,,ro,disk=/e.img,\
     net=passt,,forward=8080:80,net=pool:lan,kernel=/boot/vmlinuz,initrd=/i.gz,\
     initrd=fd:3,boot=bzimage,cmdline=console=ttyS0,,115200 quiet";

fn every_key() -> InstanceSpec {
    InstanceSpec {
        name: Some("web".parse().unwrap()),
        memory: Size::mib(64),
        cpus: 4,
        cpus_affinity: Some("0-3,7".parse().unwrap()),
        order: Some(13),
        violation: ViolationPolicy::Stop,
        on_reboot: OnEnd::Restart,
        on_panic: OnEnd::Restart,
        autostart: false,
        console_log: Some("/l".into()),
        cgroup: Some("/batch".into()),
        cpu_limit: Some(150),
        memory_limit: Some(Size::mib(300)),
        thread_limit: Some(6),
        label: vec!["job=17".parse().unwrap(), "user=ada".parse().unwrap()],
        rng: true,
        consoles: 2,
        disk: vec!["/d.img,ro".parse().unwrap(), "/e.img".parse().unwrap()],
        net: vec![
            "passt,forward=8080:80".parse().unwrap(),
            "pool:lan".parse().unwrap(),
        ],
        kernel: Some(KernelSource::File(Source::Path("/boot/vmlinuz".into()))),
        initrd: vec![Source::Path("/i.gz".into()), Source::Fd(3)],
        boot: Some(BootMode::BzImage),
        cmdline: Some("console=ttyS0,115200 quiet".to_owned()),
    }
}

#[test]
fn every_key_is_read_through_every_door() {
    assert_eq!(spec(EVERY_KEY).unwrap(), every_key());
    for key in keys::<InstanceSpec>() {
        assert!(EVERY_KEY.contains(&format!("{key}=")), "{key}");
    }
    let json = serde_json::to_value(every_key()).unwrap();
    assert_eq!(
        json.as_object().unwrap().len(),
        keys::<InstanceSpec>().len()
    );
    assert_eq!(
        serde_json::from_value::<InstanceSpec>(json).unwrap(),
        every_key()
    );
}

#[test]
fn the_keys_are_those_of_the_interface() {
    let keys = keys::<InstanceSpec>();
    for key in ["name", "kernel", "initrd", "cmdline", "memory", "cpus"] {
        assert!(keys.contains(&key), "{key}");
    }
}

#[test]
fn nothing_but_defaults_is_written_and_read_alike() {
    let text = serde_json::to_string(&InstanceSpec::default()).unwrap();
    assert_eq!(
        text,
        r#"{"memory":134217728,"cpus":1,"violation":"log","on-reboot":"stop","on-panic":"stop"}"#
    );
    let read = |json: &str| serde_json::from_str::<InstanceSpec>(json).unwrap();
    assert_eq!(read(&text), InstanceSpec::default());
    assert_eq!(read("{}"), InstanceSpec::default());
    assert_eq!(spec("name=a").unwrap().memory, DEFAULT_MEMORY);
}

#[test]
fn json_takes_what_json_has() {
    let read = |json: &str| serde_json::from_str::<InstanceSpec>(json);
    let one = read(r#"{"memory": "8M", "cpus": 2.0, "initrd": "/i", "order": null}"#).unwrap();
    assert_eq!((one.memory, one.cpus, one.order), (Size::mib(8), 2, None));
    assert_eq!(one.initrd, [Source::Path("/i".into())]);
    for bad in [
        r#"{"cpus": "2"}"#,
        r#"{"cpus": 0}"#,
        r#"{"cpus": null}"#,
        r#"{"order": 11}"#,
        r#"{"initrd": null}"#,
        r#"{"on_panic": "stop"}"#,
        r#"{"vcpus": 2}"#,
    ] {
        assert!(read(bad).is_err(), "{bad}");
    }
}

#[test]
fn each_wrong_text_has_its_error() {
    for (text, message) in [
        ("", "`` is not KEY=VAL"),
        ("name", "`name` is not KEY=VAL"),
        ("consoles=9", "consoles=9: expected an integer from 0 to 8"),
        (
            "net=tap:x",
            "net=tap:x: `tap:x` is neither `passt` nor `pool:SEGMENT`",
        ),
        ("net=passt,mtu=1500", "unknown key `mtu`"),
        ("rng=maybe", "rng=maybe: expected a boolean"),
        ("rng,rng=false", "`rng` is given twice"),
        ("memroy=1M", "unknown key `memroy`"),
        ("kernel=a,kernel=b", "`kernel` is given twice"),
        ("memory=1M,memory=2M", "`memory` is given twice"),
        ("cpus=1,cpus=2", "`cpus` is given twice"),
        ("violation=log,violation=log", "`violation` is given twice"),
        (
            "name=a/b",
            "name=a/b: `a/b` is not an instance name: 1 to 32 letters, digits, `.`, `_`, `-`, \
             the first a letter or digit",
        ),
        (
            "memory=0",
            "memory=0: 0 bytes is out of range (1..=18446744073709547520)",
        ),
        (
            "memory=0xffffffffffffffff",
            "memory=0xffffffffffffffff: 18446744073709551615 bytes is out of range \
             (1..=18446744073709547520)",
        ),
        ("memory=1Q", "memory=1Q: `Q` follows the number in `1Q`"),
        ("cpus=0", "cpus=0: expected an integer from 1 to 64"),
        ("cpus=65", "cpus=65: expected an integer from 1 to 64"),
        ("cpus=two", "cpus=two: expected an integer from 1 to 64"),
        ("cpus=-1", "cpus=-1: expected an integer from 1 to 64"),
        ("order=11", "order=11: expected an integer from 12 to 63"),
        ("order=x", "order=x: expected an integer from 12 to 63"),
        (
            "cpus-affinity=x",
            "cpus-affinity=x: `x` is not a list of processors such as 2-5,7",
        ),
        ("boot=grub", "boot=grub: expected elf or bzimage"),
        ("on-panic=cry", "on-panic=cry: expected stop or restart"),
        ("violation=shrug", "violation=shrug: expected log or stop"),
    ] {
        let error = spec(text).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(error.class(), Class::Invalid, "{text}");
    }
    assert!(spec("nam=a").unwrap_err().hint().unwrap().contains("name,"));
}

#[test]
fn images_need_a_kernel() {
    for lost in ["initrd=i", "boot=elf", "cmdline=quiet"] {
        let error = spec(lost).unwrap().check().unwrap_err();
        assert_eq!(error, SpecError::NoKernel, "{lost}");
    }
    assert_eq!(spec("name=a").unwrap().images(), Ok(None));
    let none: Vec<(&str, String)> = Vec::new();
    let load: Result<ImagesSpec, _> = from_pairs(none);
    assert_eq!(load, Err(SpecError::NoKernel));
}

#[test]
fn images_are_put_in_place() {
    let with = every_key();
    let images = with.images().unwrap();
    let bare = with.clone().with_images(None);
    assert_eq!(bare.images(), Ok(None));
    assert_eq!(bare.with_images(images.as_ref()), with);
}

#[test]
fn relative_paths_get_a_base() {
    let mut one = spec("kernel=k,initrd=i,initrd=/j,initrd=fd:3,console-log=probe").unwrap();
    one.rebase(Path::new("/d"));
    let same = "kernel=/d/k,initrd=/d/i,initrd=/j,initrd=fd:3,console-log=/d/probe";
    assert_eq!(one, spec(same).unwrap());
    let mut probe = spec("kernel=probe").unwrap();
    probe.rebase(Path::new("/d"));
    assert_eq!(probe.kernel, Some(KernelSource::Probe));
}

#[test]
fn processors_are_checked_apart_from_the_text() {
    let error = spec("cpus-affinity=3-1").unwrap().check().unwrap_err();
    assert_eq!(error.class(), Class::Affinity);
}

#[test]
fn a_flag_needs_no_value() {
    assert!(spec("name=a,rng,memory=1M").unwrap().rng);
    assert!(!spec("rng=false").unwrap().rng);
    let flags = keys::<InstanceSpec>().iter();
    let flags: Vec<&str> = flags
        .copied()
        .filter(|key| is_flag::<InstanceSpec>(key))
        .collect();
    assert_eq!(flags, ["autostart", "rng"]);
    let devices = spec("consoles=1,rng").unwrap().devices();
    let console = DeviceSpec::Console { number: 1 };
    assert_eq!(devices, [DeviceSpec::Rng, console]);
}

#[test]
fn the_words_of_a_key_are_known() {
    let words_of = words::<InstanceSpec>;
    assert_eq!(words_of("violation"), ["log", "stop"]);
    assert_eq!(words_of("boot"), ["elf", "bzimage"]);
    for key in ["memory", "cpus", "kernel", "cpus-affinity"] {
        assert!(words_of(key).is_empty(), "{key}");
    }
}

#[test]
fn paths_that_no_file_has_are_refused() {
    for key in ["kernel", "initrd", "console-log"] {
        spec(&format!("{key}=/{}", "x".repeat(4094))).unwrap();
        let error = spec(&format!("{key}=/{}", "x".repeat(4095))).unwrap_err();
        let message = error.to_string();
        assert!(
            message.ends_with("4096 bytes is out of range (1..=4095)"),
            "{message}"
        );
        assert!(message.len() < 200, "the error repeats the path");
    }
}

#[test]
fn memory_in_which_nothing_runs_is_refused() {
    let of = |memory: &str| spec(&format!("name=a,memory={memory}")).unwrap().check();
    for memory in ["1", "128", "2M"] {
        let error = of(memory).unwrap_err();
        assert_eq!(error.class(), Class::NoRoom);
        let message = error.to_string();
        assert!(message.ends_with("less than 2052K"), "{message}");
    }
    of("2052K").unwrap();
}
