//! `mkvmm top`: a live view of the pool and its instances.
//!
//! | file | what it is |
//! |---|---|
//! | `model` | what is shown, and what the user has chosen |
//! | `view` | draws the model |
//! | `mod` | asks the VMM once a second, and reads keys |
//!
//! A thread of its own talks to the VMM, so that keys are answered at once
//! while it takes its time.

mod model;
mod view;

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::cli::HostIoError;
use crate::cli::client::ClientArgs;
use crate::error::{CliError, ExitStatus};
use mkvmm_api::instance::Instance;
use mkvmm_base::state::State;
use mkvmm_base::{Class, Diagnose};
use mkvmm_client::connection::{ask, block_on};
use mkvmm_client::{Call, ClientError, escape};
use model::{Model, Snapshot, Verb};

/// How often the VMM is asked.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long keys are waited for before news are looked for.
const KEYS: Duration = Duration::from_millis(50);
/// The metric with the exits of instances.
const EXITS: &str = "mkvmm_instance_exits_total{";

#[derive(Debug, clap::Args)]
pub struct TopArgs {
    /// The control socket [default: $MKVMM_SOCKET, $XDG_RUNTIME_DIR/mkvmm.sock or
    /// /run/mkvmm.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

/// Standard input or output is no terminal.
#[derive(Debug, thiserror::Error)]
#[error("`top` draws on a terminal, and this is none")]
pub struct NoTerminal;

impl Diagnose for NoTerminal {
    fn class(&self) -> Class {
        Class::Invalid
    }

    fn hint(&self) -> Option<String> {
        Some("`mkvmm list` and `mkvmm metrics` print the same once".to_owned())
    }
}

/// Shows the view until the user leaves, or the VMM ends.
///
/// # Errors
/// Returns [`NoTerminal`], an error of the terminal, or that of the connection
/// to the VMM.
pub fn run(args: &TopArgs) -> Result<ExitStatus, CliError> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(NoTerminal.into());
    }
    let client = ClientArgs::maybe(args.socket.clone());
    // Whether there is a VMM is known before the terminal is changed.
    client.call(Call::get("/v1/version"))?;
    let (wishes, wanted) = channel();
    let (sender, news) = channel();
    let socket = client.socket();
    thread::Builder::new()
        .name("feed".to_owned())
        .spawn(move || feed(&socket, &wanted, &sender))
        .map_err(HostIoError::Signals)?;
    // This restores the terminal after a panic as well.
    let mut terminal = ratatui::try_init().map_err(HostIoError::Terminal)?;
    let ended = converse(&mut terminal, &wishes, &news);
    ratatui::restore();
    ended
}

/// What the view wants of the VMM.
#[derive(Debug)]
enum Wish {
    /// A snapshot and the console of this instance, at once.
    Look(Option<String>),
    /// A verb for this instance.
    Verb(Verb, String),
}

/// What the VMM has said.
#[derive(Debug)]
enum News {
    /// A snapshot, with the end of the output of the selected instance.
    Snapshot(Box<Snapshot>, String),
    /// What became of a verb.
    Done(String),
    /// The VMM does not answer any more.
    Lost(CliError),
}

/// Shows news and handles keys.
fn converse(
    terminal: &mut DefaultTerminal,
    wishes: &Sender<Wish>,
    news: &Receiver<News>,
) -> Result<ExitStatus, CliError> {
    let mut model = Model::default();
    let name = |model: &Model| model.selected().map(|one| one.name.to_string());
    loop {
        terminal
            .draw(|frame| view::draw(frame, &model))
            .map_err(HostIoError::Terminal)?;
        while let Ok(new) = news.try_recv() {
            match new {
                News::Snapshot(snapshot, output) => {
                    model.update(*snapshot);
                    model.show_console(&output);
                }
                News::Done(message) => model.message = Some(message),
                News::Lost(error) => return Err(error),
            }
        }
        if !event::poll(KEYS).map_err(HostIoError::Terminal)? {
            continue;
        }
        // Other events, such as a new size, only have it drawn again.
        let Event::Key(key) = event::read().map_err(HostIoError::Terminal)? else {
            continue;
        };
        let before = name(&model);
        match pressed(&mut model, key) {
            Pressed::Nothing => {}
            Pressed::Quit => return Ok(ExitStatus::Done),
            // The thread ends only with its news, which are handled above.
            Pressed::Verb(verb, name) => drop(wishes.send(Wish::Verb(verb, name))),
        }
        let after = name(&model);
        if before != after {
            drop(wishes.send(Wish::Look(after)));
        }
    }
}

/// The effect of a key.
#[derive(Debug, PartialEq, Eq)]
enum Pressed {
    /// At most the model has changed.
    Nothing,
    /// The user leaves.
    Quit,
    /// A verb for the instance with this name.
    Verb(Verb, String),
}

/// Handles a key. What ends a guest is asked for once more.
fn pressed(model: &mut Model, key: KeyEvent) -> Pressed {
    if key.kind == KeyEventKind::Release {
        return Pressed::Nothing;
    }
    model.message = None;
    if let Some((verb, name)) = model.question.take() {
        return match key.code {
            KeyCode::Char('y') => Pressed::Verb(verb, name),
            _ => Pressed::Nothing,
        };
    }
    let selected = model
        .selected()
        .map(|one| (one.name.to_string(), one.state));
    match (key.code, selected) {
        (KeyCode::Char('c'), _) if key.modifiers.contains(KeyModifiers::CONTROL) => {
            return Pressed::Quit;
        }
        (KeyCode::Char('q') | KeyCode::Esc, _) => return Pressed::Quit,
        (KeyCode::Down | KeyCode::Char('j'), _) => model.select(1),
        (KeyCode::Up, _) => model.select(-1),
        (KeyCode::PageDown, _) => model.select(10),
        (KeyCode::PageUp, _) => model.select(-10),
        (KeyCode::Home, _) => model.select(isize::MIN),
        (KeyCode::End, _) => model.select(isize::MAX),
        (KeyCode::Char('o'), _) => model.order = model.order.next(),
        (KeyCode::Char('s'), Some((name, _))) => return Pressed::Verb(Verb::Start, name),
        (KeyCode::Char('p'), Some((name, State::Paused))) => {
            return Pressed::Verb(Verb::Resume, name);
        }
        (KeyCode::Char('p'), Some((name, _))) => return Pressed::Verb(Verb::Pause, name),
        (KeyCode::Char('k'), Some((name, _))) => model.question = Some((Verb::Kill, name)),
        _ => {}
    }
    Pressed::Nothing
}

/// Talks to the VMM until the view has gone.
fn feed(socket: &std::path::Path, wanted: &Receiver<Wish>, news: &Sender<News>) {
    let begin = Instant::now();
    let mut selected = None;
    let client = ClientArgs::of(socket);
    loop {
        let new = match look(socket, selected.as_deref(), begin) {
            Ok((snapshot, output)) => News::Snapshot(Box::new(snapshot), output),
            Err(error) => News::Lost(error),
        };
        let is_lost = matches!(new, News::Lost(_));
        if news.send(new).is_err() || is_lost {
            return;
        }
        match wanted.recv_timeout(INTERVAL) {
            Ok(Wish::Look(name)) => selected = name,
            Ok(Wish::Verb(verb, name)) => {
                let path = format!("/v1/instances/{}/{}", escape(&name), verb.word());
                let message = match client.call(Call::new("POST", path)) {
                    Ok(_) => format!("{name}: {} done", verb.word()),
                    Err(error) => error.render().replace('\n', "; "),
                };
                if news.send(News::Done(message)).is_err() {
                    return;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Asks for everything that the view shows. The console is empty if its
/// instance has gone meanwhile.
fn look(
    socket: &std::path::Path,
    selected: Option<&str>,
    begin: Instant,
) -> Result<(Snapshot, String), CliError> {
    block_on(async {
        let pool = ask(socket, Call::get("/v1/pool")).await?;
        let instances = ask(socket, Call::get("/v1/instances")).await?;
        let at = begin.elapsed();
        let metrics = ask(socket, Call::get("/v1/metrics")).await?;
        let instances: Vec<Instance> =
            serde_json::from_str(&instances).map_err(ClientError::Json)?;
        let first = || instances.first().map(|one| one.name.to_string());
        let output = match selected.map(str::to_owned).or_else(first) {
            Some(name) => {
                let path = format!("/v1/instances/{}/output?tail=64", escape(&name));
                ask(socket, Call::get(path)).await.unwrap_or_default()
            }
            None => String::new(),
        };
        let snapshot = Snapshot {
            at,
            pool: serde_json::from_str(&pool).map_err(ClientError::Json)?,
            exits: exits(&metrics),
            instances,
        };
        Ok((snapshot, output))
    })
}

/// Returns the exits of each instance, by its number, from OpenMetrics text.
fn exits(metrics: &str) -> HashMap<u32, u64> {
    let mut exits = HashMap::new();
    for line in metrics.lines() {
        let sample = line.strip_prefix(EXITS).and_then(|rest| {
            let (labels, count) = rest.split_once("} ")?;
            let number = labels.split_once("id=\"")?.1.split_once('"')?.0;
            Some((number.parse().ok()?, count.parse::<u64>().ok()?))
        });
        if let Some((number, count)) = sample {
            *exits.entry(number).or_default() += count;
        }
    }
    exits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_the_sums_of_their_kinds() {
        let metrics = "# TYPE mkvmm_instance_exits counter\n\
                       mkvmm_instance_exits_total{name=\"a\",id=\"1\",kind=\"io\"} 5\n\
                       mkvmm_instance_exits_total{name=\"a\",id=\"1\",kind=\"hlt\"} 2\n\
                       mkvmm_instance_exits_total{name=\"b\",id=\"7\",kind=\"io\"} 1\n\
                       mkvmm_instance_exits_total{name=\"c\",id=\"x\"} 1\n";
        assert_eq!(exits(metrics), HashMap::from([(1, 7), (7, 1)]));
    }

    #[test]
    fn keys_without_an_instance_do_nothing_and_a_kill_is_confirmed() {
        let key = |code| KeyEvent::new(code, KeyModifiers::NONE);
        let mut model = Model::default();
        for code in ['s', 'p', 'k', 'o', 'x', 'y'].map(KeyCode::Char) {
            assert_eq!(pressed(&mut model, key(code)), Pressed::Nothing);
        }
        assert!(model.question.is_none());
        let asked = || Some((Verb::Kill, "web".to_owned()));
        model.question = asked();
        assert_eq!(pressed(&mut model, key(KeyCode::Enter)), Pressed::Nothing);
        assert!(model.question.is_none(), "anything else is a no");
        model.question = asked();
        let yes = pressed(&mut model, key(KeyCode::Char('y')));
        assert_eq!(yes, Pressed::Verb(Verb::Kill, "web".to_owned()));
        assert_eq!(pressed(&mut model, key(KeyCode::Esc)), Pressed::Quit);
    }
}
