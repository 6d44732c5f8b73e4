//! Any bytes from a client of the control socket, up to where a request would
//! be carried out: nobody is there to do that. Whatever is answered is HTTP,
//! and what is refused is refused in JSON.
#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use mkvmm_api::doctor::{Answer, Findings, Offers};
use mkvmm_manager::control::client;
use mkvmm_manager::control::doctor::Doctor;
use mkvmm_manager::control::http::Api;
use mkvmm_manager::control::server::ControlSocket;
use mkvmm_manager::event_log::EventLog;
use tokio::signal::unix::{SignalKind, signal};

/// A stream of events goes on for as long as its client listens.
const PATIENCE: Duration = Duration::from_millis(200);

/// What the doctor finds who does not look.
fn examine() -> Findings {
    let no = || Answer::no("nobody looks");
    Findings {
        kvm: no(),
        kvm_kind: None,
        probe: no(),
        linux: no(),
        address_bits: None,
        memory_slots: None,
        max_vcpus: None,
        offers: Offers {
            pages: Vec::new(),
            shmem_thp: None,
            numa_nodes: Vec::new(),
            max_open_files: None,
            max_locked: None,
            kernel: None,
        },
    }
}

/// The server writes to clients that have lost patience, and libFuzzer's `main`
/// leaves SIGPIPE deadly, unlike that of a Rust program.
fn ignore_broken_pipes() {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_io().build().expect("a runtime");
    let _context = runtime.enter();
    // The handler does nothing, and stays when nobody waits for the signal.
    let _ = signal(SignalKind::pipe()).expect("a handler");
}

/// The path of the socket, which is served as long as this process lives.
fn socket() -> &'static PathBuf {
    static SOCKET: OnceLock<PathBuf> = OnceLock::new();
    SOCKET.get_or_init(|| {
        let name = format!("mkvmm-fuzz-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        // Who would carry it out has gone, so each request ends with an error.
        let (client, _) = client::channel();
        let api = Api {
            client,
            log: Arc::new(EventLog::default()),
            log_dirs: Arc::new([PathBuf::from("/nonexistent")]),
            doctor: Doctor::new(examine),
            connections: 8,
        };
        ignore_broken_pipes();
        let socket = ControlSocket::take(&path, None).expect("a socket");
        socket.serve(api, None).expect("a thread");
        std::mem::forget(socket);
        path
    })
}

fuzz_target!(|data: &[u8]| {
    let mut stream = UnixStream::connect(socket()).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    // It may have refused the rest already.
    let _ = stream.write_all(data);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let text = String::from_utf8_lossy(&answer);
    assert!(text.is_empty() || text.starts_with("HTTP/1."), "{text}");
    if let Some((head, body)) = text.split_once("\r\n\r\n") {
        let is_error = head.starts_with("HTTP/1.1 4") || head.starts_with("HTTP/1.1 5");
        let is_ours = head.contains("application/json");
        let is_json = body.is_empty() || body.starts_with("{\"error\":");
        assert!(!is_error || !is_ours || is_json, "{text}");
    }
});
