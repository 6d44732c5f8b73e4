use std::collections::HashMap;
use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use serde_json::{Value, json};

use super::*;
use crate::cli::top::model::{Order, Rates, Verb};

/// The size of each instance.
const MEMORY: u64 = 32 << 20;

fn instance(number: u64, state: &str) -> Value {
    let start = (4 << 30) + (number - 1) * MEMORY;
    json!({
        "id": number, "name": format!("web-{number}"), "state": state,
        "reason": (state == "failed").then_some("panic"),
        "memory": MEMORY, "chunks": [{"start": start, "size": MEMORY}], "avail": 0, "cpus": 2,
        "kernel": {"path": "/boot/vm\u{1b}linuz", "format": "bzImage", "compression": null,
                   "sha256": "", "start": start, "size": 4096, "entry": start},
        "initrd": null, "cmdline": null, "e820": [], "violations": number, "timeline": {},
        "pid": null, "cpu_us": 1000 * number, "resident": number << 20, "process_memory": null,
        "cgroup": null, "spec": {"name": "web"},
    })
}

fn snapshot(seconds: u64, instances: &[Value]) -> Snapshot {
    let used = MEMORY * instances.len() as u64;
    let pool = json!({
        "start": 4_u64 << 30,
        "size": 64_u64 << 30, "used": used, "avail": (64_u64 << 30) - used,
        "largest_free": 1 << 30, "free_extents": 3, "min_order": 12, "instances": instances.len(),
        "backing": {"kind": "memory", "page_size": 4096, "prealloc": false, "numa_node": null,
                    "lock": false},
    });
    Snapshot {
        at: Duration::from_secs(seconds),
        pool: serde_json::from_value(pool).unwrap(),
        instances: instances
            .iter()
            .map(|one| serde_json::from_value(one.clone()).unwrap())
            .collect(),
        exits: HashMap::new(),
    }
}

/// Returns the lines of a screen.
fn screen(model: &Model, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, model)).unwrap();
    let buffer = terminal.backend().buffer();
    let lines = buffer.content().chunks(usize::from(width));
    let text = |cells: &[ratatui::buffer::Cell]| cells.iter().map(|c| c.symbol()).collect();
    lines.map(text).collect()
}

fn crowd(count: u64) -> Model {
    let states = ["active", "paused", "failed", "loaded"];
    let states = states.iter().cycle().skip(1);
    let one = |(number, state): (u64, &&str)| instance(number, state);
    let all: Vec<Value> = (1..=count).zip(states).map(one).collect();
    let mut model = Model::default();
    model.update(snapshot(1, &all));
    model
}

#[test]
fn every_width_has_the_name_the_state_and_the_use() {
    const ALL: &str = "q quit  ↑↓ select  s start  k kill  p pause/resume  o order: number";
    for (width, columns, keys) in [
        (
            40,
            "NAME STATE CPU% RESIDENT",
            "q quit  ↑↓ select  s start  k kill",
        ),
        (
            80,
            "ID NAME STATE CPU% RESIDENT MEMORY CPUS EXITS/s VIOLATIONS",
            ALL,
        ),
        (
            200,
            "ID NAME STATE CPU% RESIDENT MEMORY CPUS EXITS/s VIOLATIONS KERNEL",
            ALL,
        ),
    ] {
        for count in [1, 1000] {
            let lines = screen(&crowd(count), width, 24);
            let titles: Vec<&str> = lines[2].split_whitespace().collect();
            assert_eq!(titles.join(" "), columns, "{width}");
            assert!(
                lines[0].contains(&format!("/{count} active")),
                "{}",
                lines[0]
            );
            assert!(lines[3].contains("web-1 "), "{}", lines[3]);
            assert!(lines[3].contains("paused"), "{}", lines[3]);
            assert_eq!(lines[23].trim_end(), keys, "none of them is cut off");
            // No text of clients reaches the terminal as it is.
            assert!(!lines.concat().contains('\u{1b}'));
        }
    }
    assert!(screen(&crowd(1), 200, 24)[3].contains("/boot/vm?linuz"));
}

#[test]
fn the_selection_is_always_visible() {
    let mut model = crowd(1000);
    for (by, name) in [
        (0, "web-1 "),
        (500, "web-501"),
        (9999, "web-1000"),
        (-1, "web-999"),
    ] {
        model.select(by);
        let lines = screen(&model, 80, 24);
        assert!(
            lines.iter().any(|line| line.contains(name)),
            "{name}: {lines:#?}"
        );
    }
    model.update(snapshot(2, &[instance(7, "active")]));
    let selected = model.selected().map(|one| one.name.to_string());
    assert_eq!(selected.as_deref(), Some("web-7"), "its instance is gone");
    model.update(snapshot(3, &[]));
    assert!(model.selected().is_none());
    model.select(1);
    screen(&model, 40, 5);
    screen(&model, 1, 1);
}

#[test]
fn rates_are_what_was_used_in_between() {
    let mut model = crowd(2);
    let mut busy = instance(2, "active");
    busy["cpu_us"] = json!(2000 + 1_500_000);
    let mut next = snapshot(3, &[instance(1, "active"), busy, instance(3, "active")]);
    next.exits = HashMap::from([(2, 500)]);
    model.update(next);
    let rates = |number: u32| model.rates.get(&number).copied();
    assert_eq!(
        rates(2),
        Some(Rates {
            cpu: 75.0,
            exits: 250.0
        })
    );
    assert_eq!(rates(1), Some(Rates::default()));
    assert_eq!(rates(3), None, "it is new");
    model.order = Order::Cpu;
    assert_eq!(model.rows()[0].id, 2);
    model.order = Order::Memory;
    assert_eq!(model.rows()[0].id, 3);
}

#[test]
fn the_console_is_plain_text_and_a_question_replaces_the_keys() {
    let mut model = crowd(1);
    model.show_console("first\r\n\x1b[31mred\x1b[0m \x07bell\u{9b}2J\r\nlast");
    let lines = screen(&model, 60, 24).concat();
    assert!(lines.contains("console of web-1"));
    assert!(
        lines.contains("red bell2J") || lines.contains("red bell"),
        "{lines}"
    );
    assert!(!lines.contains(|c: char| c.is_control()));
    assert!(
        !screen(&model, 60, 12).concat().contains("console"),
        "it is too low"
    );
    model.question = Some((Verb::Kill, "web-1".to_owned()));
    assert!(screen(&model, 60, 24)[23].starts_with("kill web-1? y/n"));
}
