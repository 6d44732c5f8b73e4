use super::*;

fn spec(text: &str) -> InstanceSpec {
    text.parse().unwrap()
}

fn refused(specs: Vec<InstanceSpec>) -> SpecError {
    match check(specs).unwrap_err() {
        ResolveError::Spec(error) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guest_needs_a_kernel() {
    for text in ["name=a", "cmdline=quiet"] {
        assert_eq!(refused(vec![spec(text)]), SpecError::NoKernel);
    }
}

#[test]
fn two_guests_of_one_name_are_refused() {
    let specs = vec![spec("kernel=probe,name=guest2"), spec("kernel=probe")];
    assert!(matches!(refused(specs), SpecError::SameName { .. }));
}

#[test]
fn processors_that_are_not_there_are_refused() {
    let specs = vec![spec("kernel=probe,cpus-affinity=1023")];
    assert!(matches!(refused(specs), SpecError::Affinity(_)));
}

#[test]
fn what_was_written_stays_with_what_is_built() {
    let specs = vec![spec("kernel=probe,cmdline=spin,on-panic=restart")];
    let (instance, images) = check(specs).unwrap().remove(0);
    assert_eq!(instance.name.as_str(), "guest1");
    let shown = instance.spec.with_images(Some(&images));
    assert_eq!(
        shown,
        spec("name=guest1,kernel=probe,cmdline=spin,on-panic=restart")
    );
}
