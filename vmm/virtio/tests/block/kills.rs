//! Processes that are killed while their disk is under load: every completed
//! write is there, and every sector is whole.

use std::env;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use libtest_mimic::Trial;
use mkvmm_test_power::Dice;

use crate::disk::{Disk, Kind, Scratch};
use crate::record::{self, Load, Record, SECTORS};

const VARIABLE: &str = "MKVMM_BLOCK_TEST";
const KILLS: u64 = 50;
/// The most that is read of the child's output before it is killed.
const TOLD: u64 = 400;

pub fn trials() -> Vec<Trial> {
    let trial = |kind: Kind| {
        let name = format!("kills::completed_writes_survive_50_kills::{kind:?}").to_lowercase();
        Trial::test(name, move || {
            survive(kind)?;
            Ok(())
        })
    };
    Kind::all().into_iter().map(trial).collect()
}

/// Plays the process that is killed, if this is it.
pub fn play() -> Option<ExitCode> {
    let given = env::var(VARIABLE).ok()?;
    let (kind, path) = given.split_once(' ')?;
    let kind = if kind == "ring" {
        Kind::Ring
    } else {
        Kind::Threads
    };
    let path = PathBuf::from(path);
    let mut disk = Disk::new(&path, kind);
    let record = Record::of(&std::fs::read(&path).ok()?).ok()?;
    let mut dice = Dice::new(u64::from(std::process::id()));
    let mut output = io::stdout().lock();
    Load::new(record).run(&mut disk, &mut dice, usize::MAX, |sector, number| {
        let mut line = (sector as u64).to_le_bytes().to_vec();
        line.extend(number.to_le_bytes());
        output.write_all(&line).unwrap();
        output.flush().unwrap();
    });
    Some(ExitCode::SUCCESS)
}

fn survive(kind: Kind) -> Result<(), String> {
    let file = Scratch::new(&[0; SECTORS * 512]);
    let mut dice = Dice::new(3);
    for kill in 0..KILLS {
        let record = kill_once(kind, file.path(), dice.below(TOLD))?;
        let checked = record.check_after_kill(&file.contents());
        checked.map_err(|lost| format!("after kill {kill}: {lost}"))?;
    }
    Ok(())
}

/// Has a process write until it has told of `count` writes, kills it, and
/// returns what it has told.
fn kill_once(kind: Kind, path: &Path, count: u64) -> Result<Record, String> {
    let mut record = Record::of(&std::fs::read(path).unwrap())?;
    let word = format!("{kind:?}").to_lowercase();
    let mut child = Command::new("/proc/self/exe")
        .env(VARIABLE, format!("{word} {}", path.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut told = 0;
    let mut line = [0; 16];
    while output.read_exact(&mut line).is_ok() {
        let (sector, number) = line.split_at(8);
        let number_of = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        let sector = usize::try_from(number_of(sector)).unwrap();
        record::add_told(&mut record, sector, number_of(number));
        told += 1;
        if told == count + 1 {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(told > count, "the process has ended by itself");
    record::forget_begun(&mut record);
    Ok(record)
}
