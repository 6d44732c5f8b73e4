//! Tests of both pictures.

use mkvmm_api::Range;
use mkvmm_api::pool::{Backing, Owner, Part, Pool, PoolMap, Segment, SegmentKind};
use mkvmm_base::state::State;
use svg::parser::Event;

use super::picture::{Grid, Who, colours, index, who};
use super::{svg as picture, terminal};

const MIB: u64 = 1 << 20;
const BASE: u64 = 4 << 30;

fn range(start: u64, size: u64) -> Range {
    Range { start, size }
}

/// Returns a pool of `size` bytes with these segments one after the other; the
/// rest is free.
fn map(size: u64, segments: impl IntoIterator<Item = (u64, SegmentKind)>) -> PoolMap {
    let mut next = BASE;
    let mut all = Vec::new();
    let mut owners: Vec<Owner> = Vec::new();
    for (bytes, kind) in segments {
        if let SegmentKind::Instance { instance, .. } = &kind {
            owners.push(Owner {
                id: 1,
                name: instance.clone(),
                state: State::Ready,
                memory: bytes,
                chunks: 1,
            });
        }
        let range = range(next, bytes);
        next += bytes;
        all.push(Segment { range, kind });
    }
    let avail = BASE + size - next;
    if avail > 0 {
        let (range, kind) = (range(next, avail), SegmentKind::Free);
        all.push(Segment { range, kind });
    }
    let instances = owners.len() as u64;
    PoolMap {
        pool: Pool {
            range: range(BASE, size),
            avail,
            used: size - avail,
            largest_free: avail,
            free_extents: 1,
            min_order: 12,
            backing: Backing {
                kind: "normal".to_owned(),
                page_size: 4096,
                prealloc: false,
                numa_node: None,
            },
            instances,
            channel_area: None,
        },
        granule: 4096,
        segments: all,
        owners,
    }
}

/// Returns an instance at `start` with a kernel in its first half.
fn instance(name: &str, start: u64, size: u64) -> (u64, SegmentKind) {
    let part = |name: &str, start| Part {
        name: name.to_owned(),
        range: range(start, size / 2),
    };
    let parts = vec![
        part("kernel", start),
        part("guest memory", start + size / 2),
    ];
    let instance = name.to_owned();
    (size, SegmentKind::Instance { instance, parts })
}

fn plain(map: &PoolMap, width: usize, legend: usize) -> String {
    let room = terminal::Room { width, legend };
    anstream::adapter::strip_str(&terminal::render(map, room)).to_string()
}

#[test]
fn without_colours_it_still_says_who_has_what() {
    let segments = [
        instance("web", BASE, 16 * MIB),
        instance("db", BASE + 16 * MIB, 2 * MIB),
        (MIB, SegmentKind::Held),
        (MIB, SegmentKind::Allocation),
    ];
    assert_eq!(
        plain(&map(64 * MIB, segments), 40, 16),
        "pool 0x100000000-0x103ffffff  64M, 44M free, 44M of it in one piece; 2 instances\n\
         each cell 1M:  █ kernel, initramfs  ▒ guest memory  ╳ held  + allocation  · free\n\
         \n\
         \x20            +0  +4M +8M +12M\n\
         0x100000000  ██████web▒▒▒▒▒▒▒\n\
         0x101000000  b▒╳+············\n\
         0x102000000  ················\n\
         0x103000000  ················\n\
         \n\
         \x20  NAME  STATE      SIZE  CHUNKS\n\
         a  web   ready       16M       1\n\
         b  db    ready        2M       1\n\
         free: 44M at 0x101400000\n"
    );
}

#[test]
fn a_thousand_instances_fit_and_the_rest_is_summed() {
    let all = (0..1000).map(|i| instance(&format!("vm{i}"), BASE + i * MIB, MIB));
    let text = plain(&map(1000 * MIB, all), 80, 16);
    assert!(text.lines().count() < 60, "{text}");
    // Check below the heading only, which is prose.
    let narrow = |line: &str| line.chars().count() <= 80;
    assert!(text.lines().skip(2).all(narrow), "{text}");
    assert!(text.contains("and 968 more, in all 968M\nfree: nothing\n"));
}

#[test]
fn neighbours_have_different_colours() {
    let name = |i: u64| {
        if i.is_multiple_of(3) {
            "all over".to_owned()
        } else {
            format!("s{i}")
        }
    };
    let segments = (0..100).map(|i| instance(&name(i), BASE + i * MIB, MIB));
    let mut map = map(128 * MIB, segments);
    let mut seen = std::collections::HashSet::new();
    map.owners.retain(|owner| seen.insert(owner.name.clone()));
    let (colours, index) = (colours(&map), index(&map));
    for two in map.segments.windows(2) {
        if let (Who::Instance(a), Who::Instance(b)) = (who(&two[0], &index), who(&two[1], &index)) {
            assert_ne!(colours[a], colours[b], "{a} {b}");
        }
    }
}

#[test]
fn rows_are_round_and_a_pool_may_begin_anywhere() {
    let mut map = map(64 * MIB, []);
    map.pool.range.start += 3 * MIB;
    map.segments[0].range.start += 3 * MIB;
    let grid = Grid::new(&map, 4, 4096);
    assert_eq!((grid.start, grid.row, grid.rows), (BASE, 16 * MIB, 5));
    let text = plain(&map, 40, 16);
    assert!(text.contains("0x100000000     ·····"), "{text}");
    assert!(text.contains("0x104000000  ···\n"), "{text}");
    picture::render(&map, 30);
}

#[test]
fn the_svg_is_xml_whatever_a_name_is() {
    let name = "<&\"'>]]>\u{1}";
    let all = [instance(name, BASE, 16 * MIB), (4096, SegmentKind::Lost)];
    let map = map(64 * MIB, all);
    let text = picture::render(&map, 30);
    assert!(!text.contains(name) && !text.contains('\u{1}'), "{text}");
    assert!(text.contains("&lt;&amp;"), "{text}");
    // The XML namespace is the only URL, and nothing is fetched.
    assert_eq!(text.matches("http").count(), 1, "{text}");
    let (mut depth, mut titles) = (0, 0);
    for event in svg::read(&text).unwrap() {
        match event {
            Event::Error(error) => panic!("{error}"),
            Event::Tag(tag, kind, _) => {
                use svg::node::element::tag::Type;
                titles += usize::from(tag == "title" && matches!(kind, Type::Start));
                depth += match kind {
                    Type::Start => 1,
                    Type::End => -1,
                    Type::Empty => 0,
                };
            }
            _ => {}
        }
    }
    assert_eq!(depth, 0, "what begins ends");
    // There are the picture, the chunk, its kernel, the lost range, and the
    // free ranges by row.
    assert!(titles >= 6, "{text}");
    assert!(text.contains("lost\n0x101000000-0x101000fff, 4K"), "{text}");
}
