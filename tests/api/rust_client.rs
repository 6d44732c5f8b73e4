//! Tests of the client crate, for programs other than the command line.

use std::io::{Read, Write};
use std::time::Duration;

use mkvmm_api::InstanceSpec;
use mkvmm_api::events::EventKind;
use mkvmm_base::state::{EndReason, State};
use mkvmm_base::{Class, Diagnose};
use mkvmm_client::{Call, Client, ClientError, Since};
use mkvmm_test_harness::Scratch;
use mkvmm_test_harness::tier::skips_without_kvm;

use crate::server::Server;

/// A guest that answers what is typed, until it is told to end.
fn shell(name: &str) -> InstanceSpec {
    let text = format!("name={name},memory=8M,kernel=probe,cmdline=shell");
    text.parse().expect("it is one")
}

/// Returns what is read up to `end`, which must come.
fn read_to(from: &mut impl Read, end: &str) -> String {
    let (mut text, mut byte) = (Vec::new(), [0]);
    while !text.ends_with(end.as_bytes()) {
        let count = from.read(&mut byte).expect("it is open");
        assert_eq!(count, 1, "{}", String::from_utf8_lossy(&text));
        text.extend(byte);
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn a_program_boots_a_guest_talks_to_it_and_sees_it_end() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    let client = Client::new(server.socket());
    let mut events = client.events(Since::Now, Some("web")).expect("it serves");
    assert_eq!(
        client.create(&shell("web")).expect("room").state,
        State::Loaded
    );
    client.start("web").expect("it is loaded");
    let mut console = client.console("web").expect("it has one");
    console
        .write_all(b"echo forty-two\n")
        .expect("it is attached");
    assert!(read_to(&mut console, "\nforty-two").contains("probe# echo"));
    // A second reader gets the same from the beginning.
    let mut output = client.follow_output("web").expect("it has some");
    assert!(read_to(&mut output, "\nforty-two").contains("probe# echo"));
    assert_eq!(client.pause("web").expect("it runs").state, State::Paused);
    assert_eq!(
        client.resume("web").expect("it is paused").state,
        State::Active
    );
    let killed = client.kill("web", Duration::ZERO).expect("it runs");
    assert_eq!(killed.reason, Some(EndReason::Killed));
    assert!(client.wait("web").expect("it is there").has_ended());
    client.delete("web").expect("it has ended");
    // Both streams end with the instance.
    let mut rest = String::new();
    output.read_to_string(&mut rest).expect("text");
    let states: Vec<State> = events
        .by_ref()
        .map(|event| event.expect("it serves").kind)
        .take_while(|kind| *kind != EventKind::Deleted)
        .filter_map(|kind| match kind {
            EventKind::State { state, .. } => Some(state),
            _ => None,
        })
        .collect();
    let but_last = [
        State::Loaded,
        State::Active,
        State::Paused,
        State::Active,
        State::Stopped,
    ];
    // It is cleaned before it is deleted.
    assert!(states.starts_with(&but_last), "{states:?}");
    assert!(client.audit().expect("it serves").ok);
    server.expect_empty();
}

#[test]
fn a_lease_that_is_dropped_ends_its_instance() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    let client = Client::new(server.socket());
    assert!(client.create_leased(&shell("job")).expect("room").leased);
    let mut lease = client
        .lease("job", Some(Duration::from_secs(60)))
        .expect("it waits for it");
    client.start("job").expect("it is loaded");
    lease.renew().expect("it is held");
    assert_eq!(
        client.instance("job").expect("it is held").state,
        State::Active
    );
    let mut events = client.events(Since::Now, Some("job")).expect("it serves");
    drop(lease);
    let is_gone = events.any(|event| event.expect("it serves").kind == EventKind::Deleted);
    assert!(is_gone);
    server.expect_empty();
}

#[test]
fn an_error_says_whether_it_was_refused_or_not_heard() {
    let server = Server::start("64M@4G");
    let client = Client::new(server.socket());
    let refused = client.start("nobody").expect_err("there is none");
    assert_eq!(refused.class(), Class::NoInstance, "{refused}");
    let ClientError::Refused(error) = &refused else {
        panic!("{refused:?}");
    };
    assert_eq!(error.message, refused.to_string());
    // Any request can be sent, also one that has no function.
    let text = client.text(Call::get("/v1/capacity")).expect("it serves");
    assert!(text.starts_with('{'), "{text}");
    let nobody = Client::new(Scratch::new().path("nobody.sock"));
    let unheard = nobody.pool().expect_err("nobody listens");
    assert_eq!(unheard.class(), Class::Lost);
    assert!(unheard.hint().expect("a hint").contains("mkvmm serve"));
    server.tear_down();
}
