use super::*;

fn spec(text: &str) -> Result<GuestSpec, SpecError> {
    text.parse()
}

#[test]
fn every_key_is_read() {
    let spec = spec(
        "name=web,kernel=/boot/vmlinuz,initrd=/i.gz,initrd=fd:3,boot=bzimage,cmdline=console=ttyS0,,115200 quiet,memory=64M,order=13,cpus=4,cpus-affinity=0,violation=stop,on-reboot=restart,on-panic=stop,console-log=/l",
    )
    .unwrap();
    assert_eq!(spec.name.unwrap().as_str(), "web");
    let path = |p: &str| ImageSource::Path(p.into());
    let images = spec.images.unwrap();
    let sources = [path("/boot/vmlinuz"), path("/i.gz"), ImageSource::Fd(3)];
    assert!(images.sources().eq(&sources));
    assert_eq!(images.boot, BootMode::BzImage);
    assert_eq!(images.cmdline.unwrap(), "console=ttyS0,115200 quiet");
    assert_eq!(spec.memory, 64 << 20);
    assert_eq!((spec.cpus, spec.order), (4, Some(13)));
    assert_eq!(spec.affinity.unwrap().to_string(), "0");
    assert_eq!(spec.violation, ViolationPolicy::Stop);
    assert_eq!(spec.console_log, Some("/l".into()));
    assert_eq!(
        (spec.on_reboot, spec.on_panic),
        (OnEnd::Restart, OnEnd::Stop)
    );
}

#[test]
fn defaults_are_those_of_the_probe() {
    let spec = spec("kernel=probe").unwrap();
    assert_eq!(spec.memory, DEFAULT_MEMORY);
    assert_eq!(spec.name, None);
    let images = spec.images.unwrap();
    assert_eq!(images.kernel, KernelSource::Probe);
    assert_eq!(images.boot, BootMode::Elf);
}

#[test]
fn what_is_wrong_is_named() {
    let error = |text: &str| spec(text).unwrap_err();
    assert_eq!(spec("name=a").unwrap().images, None);
    for lost in ["initrd=i", "boot=elf", "cmdline=quiet"] {
        assert_eq!(error(lost), SpecError::NoKernel);
    }
    assert!(matches!(
        resolve(&[spec("name=a").unwrap()]).unwrap_err(),
        ResolveError::Spec(SpecError::NoKernel)
    ));
    for order in ["11", "64", "x"] {
        let text = format!("order={order}");
        assert!(matches!(error(&text), SpecError::Order { .. }), "{order}");
    }
    assert_eq!(
        error(""),
        SpecError::NoValue {
            text: String::new()
        }
    );
    assert!(matches!(
        error("kernel=probe,memroy=1M"),
        SpecError::UnknownKey { .. }
    ));
    assert_eq!(
        error("kernel=a,kernel=b"),
        SpecError::Repeated { key: "kernel" }
    );
    assert!(matches!(error("kernel=probe,name=a/b"), SpecError::Name(_)));
    assert_eq!(
        error("kernel=probe,memory=0"),
        SpecError::MemorySize { size: 0 }
    );
    assert!(matches!(
        error("kernel=probe,memory=1Q"),
        SpecError::Memory(_)
    ));
    assert!(matches!(
        error("kernel=probe,memory=0xffffffffffffffff"),
        SpecError::MemorySize { .. }
    ));
    for cpus in ["0", "65", "two", "-1"] {
        let text = format!("kernel=probe,cpus={cpus}");
        assert!(matches!(error(&text), SpecError::Cpus { .. }), "{cpus}");
    }
    assert!(matches!(
        error("kernel=probe,cpus-affinity=x"),
        SpecError::Affinity(_)
    ));
    assert!(matches!(
        error("kernel=probe,boot=grub"),
        SpecError::Word { .. }
    ));
    assert!(matches!(
        error("kernel=probe,on-panic=cry"),
        SpecError::Word { .. }
    ));
    assert!(matches!(
        error("kernel=probe,violation=shrug"),
        SpecError::Word { .. }
    ));
}

#[test]
fn two_guests_of_one_name_are_refused() {
    let a = spec("kernel=probe,name=guest2").unwrap();
    let b = spec("kernel=probe").unwrap();
    let error = resolve(&[a, b]).unwrap_err();
    assert!(matches!(
        error,
        ResolveError::Spec(SpecError::SameName { .. })
    ));
}
