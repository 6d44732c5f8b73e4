//! Tests of clients that are silent, or send incomplete requests.

use super::*;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Serves one route in a local task; returns the path of its socket.
fn served(name: &str, timeouts: Timeouts) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("mkvmm-{name}-{}", std::process::id()));
    // A failed test may have left it behind.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let router = Router::new().route("/", axum::routing::post(|| async { "hello" }));
    let clients = Clients {
        limit: 4,
        is_shared: false,
    };
    tokio::spawn(serve(listener, router, clients, timeouts));
    path
}

/// Sends `said` and returns everything received until the end of the
/// connection.
async fn heard(path: &std::path::Path, said: &str) -> String {
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(said.as_bytes()).await.unwrap();
    let mut heard = String::new();
    stream.read_to_string(&mut heard).await.unwrap();
    heard
}

const HEAD: &str = "POST / HTTP/1.1\r\nHost: x\r\n";

#[tokio::test]
async fn a_client_that_does_not_finish_is_hung_up_on() {
    let short = Duration::from_millis(50);
    let long = Duration::from_secs(3600);
    let path = served(
        "half-heads",
        Timeouts {
            head: short,
            body: long,
        },
    );
    for half in ["", "POST", HEAD] {
        let heard = heard(&path, half).await;
        assert!(!heard.contains("hello"), "{half:?}: {heard}");
    }
    // A client that was served may send another request, but not at any later
    // time.
    let whole = format!("{HEAD}Content-Length: 2\r\n\r\n{{}}");
    assert!(heard(&path, &whole).await.ends_with("hello"));
    std::fs::remove_file(path).unwrap();

    let path = served(
        "half-bodies",
        Timeouts {
            head: long,
            body: short,
        },
    );
    let half = format!("{HEAD}Content-Length: 2\r\nConnection: close\r\n\r\n{{");
    let heard = heard(&path, &half).await;
    assert!(heard.starts_with("HTTP/1.1 400 "), "{heard}");
    assert!(heard.contains("did not arrive within"), "{heard}");
    std::fs::remove_file(path).unwrap();
}
