//! The records of what is there now.

use mkvmm_keeper::cgroup::Cgroups;
use mkvmm_wire::shared::board::DeviceCounts;

use crate::channels::Channel;
use crate::guest::{Guest, Loaded};
use crate::journal::record::{
    ChannelRecord, FileRecord, InstanceRecord, LeafRecord, LoadedRecord, MemberRecord, PeerRecord,
    Record, json,
};

/// Returns the records of an instance, of its owner, its devices and its worker.
pub fn of_guest(guest: &Guest) -> Vec<Record> {
    let counts = guest.status.earlier_devices();
    let devices = (!counts.is_empty()).then(|| {
        let counts = counts.iter().map(DeviceCounts::words).collect();
        Record::Devices(guest.id.0, counts)
    });
    let wire = guest.wire;
    let peer = guest.serial.map(|serial| {
        let serial = Some(serial);
        Record::Peer(PeerRecord { serial, wire })
    });
    let owner = Record::Owner(guest.id.0, guest.owner(), guest.config.is_leased);
    let instance = [of_instance(guest), owner].into_iter();
    instance.chain(devices).chain(peer).collect()
}

/// Returns the record of a channel.
pub fn of_channel(channel: &Channel) -> Record {
    let files = channel.files().map(|file| FileRecord {
        number: file.number(),
        range: file.range(),
    });
    let members = channel.members().iter().map(|member| MemberRecord {
        name: member.name.clone(),
        read_only: member.read_only,
        is_out: member.is_out,
        run: member.run.map(|run| (run.id.0, run.epoch)),
        boots: member.boots,
    });
    Record::Channel(ChannelRecord {
        id: channel.id(),
        name: channel.name().clone(),
        range: channel.range(),
        doorbells: channel.doorbells(),
        members: members.collect(),
        is_ending: channel.is_ending,
        is_left: channel.is_left,
        files: files.collect(),
    })
}

fn of_instance(guest: &Guest) -> Record {
    let files = guest.files.iter().map(|file| FileRecord {
        number: file.number(),
        range: file.range(),
    });
    let (exits, violations) = guest.status.earlier();
    Record::Instance(Box::new(InstanceRecord {
        sub_pool: guest.sub_pool.state(),
        spec: json(&guest.config.spec),
        epoch: guest.epoch,
        state: guest.state,
        reason: guest.reason,
        busy: guest.busy,
        is_new: guest.is_new,
        loads: guest.loads,
        is_clean: guest.is_clean,
        is_doomed: guest.is_doomed,
        kill_at: guest.kill_at,
        is_restarting: guest.is_restarting,
        short_lives: guest.short_lives,
        files: files.collect(),
        worker: guest.serial,
        word: guest.word,
        loaded: guest.loaded.as_ref().map(of_loaded),
        used: guest.meter.ended(),
        exits: exits.iter().map(|kinds| kinds.to_vec()).collect(),
        violations,
        stages: guest.timeline.times(),
        marks: guest
            .timeline
            .marks()
            .into_iter()
            .map(|mark| (mark.at, mark.text))
            .collect(),
        leaf: guest
            .leaf
            .as_ref()
            .map(|leaf| of_cgroup(leaf.directories())),
        base: guest.config.cgroup.as_ref().map(of_cgroup),
        start_cgroup: guest.start_cgroup.as_ref().map(of_cgroup),
        has_log: guest.log.is_some(),
    }))
}

fn of_cgroup(directories: &Cgroups) -> LeafRecord {
    let v1 = directories.v1.iter();
    LeafRecord {
        v2: directories.v2.clone(),
        v1: v1
            .map(|(controller, path)| (controller.name().to_owned(), path.clone()))
            .collect(),
    }
}

fn of_loaded(loaded: &Loaded) -> LoadedRecord {
    let images = &loaded.images;
    LoadedRecord {
        generation: loaded.generation,
        spec: json(images.spec()),
        paths: images
            .infos()
            .iter()
            .map(|info| info.path.clone())
            .collect(),
        contents: images.contents(),
        is_probe: images.is_probe(),
        cmdline: images.cmdline().to_owned(),
        plan: loaded.plan,
        full_cmdline: loaded.cmdline.clone(),
        e820: loaded
            .e820
            .iter()
            .map(|entry| (entry.range, entry.kind.raw()))
            .collect(),
        slots: loaded.slots.clone(),
    }
}
