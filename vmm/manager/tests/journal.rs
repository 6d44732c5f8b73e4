//! Journals that earlier versions have written.

use mkvmm_base::state::State;
use mkvmm_manager::adopt;
use mkvmm_manager::journal::contents;
use mkvmm_manager::journal::file::Binding;

/// What version 2 has left: a guest that runs, one that has ended, an instance that
/// is ready, and an allocation.
const FIRST: &[u8] = include_bytes!("data/journal-2");
const FIRST_BINDING: Binding = Binding {
    boot: 0xf9f93fa396a4418daba7498af56fe770,
    keeper: 0x702865d1249159ec,
};

#[test]
fn a_journal_of_the_version_before_is_read() {
    let contents = contents::read(FIRST, FIRST_BINDING).unwrap();
    assert_eq!(adopt::check(&contents).unwrap(), 3);
    let states = contents.instances.values().map(|record| record.state);
    let expected = [State::Active, State::Ready, State::Stopped];
    assert_eq!(states.collect::<Vec<_>>(), expected);
    let worker = contents
        .instances
        .values()
        .next()
        .and_then(|one| one.worker);
    assert!(worker.is_some());
    // Nobody spoke anything else then.
    assert_eq!([None, worker].map(|peer| contents.wire_of(peer)), [3; 2]);
    assert!(contents.events.len() > 5);
}
