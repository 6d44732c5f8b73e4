use super::*;
use crate::elf::tests::elf;
use crate::elf::{self, ElfError};

/// Returns an ELF file with one PT_LOAD at `base` and headers of `kinds`, which
/// all have `content` as their bytes.
fn with(base: u64, kinds: &[u32], content: &[u8]) -> Vec<u8> {
    let mut headers = vec![(PT_LOAD, 0, base, 0x1000, 0x1000)];
    headers.extend(
        kinds
            .iter()
            .map(|&kind| (kind, 0x800, 0, content.len() as u64, 0)),
    );
    let mut file = elf(base + 0x900, &headers);
    file[64 + 16..64 + 24].copy_from_slice(&base.to_le_bytes()); // p_vaddr
    file[0x800..0x800 + content.len()].copy_from_slice(content);
    file
}

fn refusal(file: &[u8]) -> Option<ProgramError> {
    match elf::parse(file) {
        Ok(_) => None,
        Err(ElfError::Program(error)) => Some(error),
        Err(error) => panic!("{error}"),
    }
}

fn dynamic(tags: &[u64]) -> Vec<u8> {
    let entry = |tag: &u64| [tag.to_le_bytes(), 0x10_u64.to_le_bytes()].concat();
    tags.iter().flat_map(entry).collect()
}

fn note(owner: &[u8], kind: u32) -> Vec<u8> {
    let mut note = u32::try_from(owner.len()).unwrap().to_le_bytes().to_vec();
    note.extend(5_u32.to_le_bytes());
    note.extend(kind.to_le_bytes());
    note.extend(owner);
    note.resize(note.len().next_multiple_of(4), 0);
    note.extend([1; 8]); // five bytes and their padding
    note
}

#[test]
fn libraries_and_linked_programs_are_told_by_their_dynamic_section() {
    let parse = |tags: &[u64]| refusal(&with(0x100_0000, &[PT_DYNAMIC], &dynamic(tags)));
    assert_eq!(parse(&[5, DT_NEEDED, 0]), Some(ProgramError::Linked));
    assert_eq!(parse(&[DT_SONAME, 0]), Some(ProgramError::Library));
    // A position-independent kernel has a dynamic section as well, and entries
    // after its end are ignored.
    assert_eq!(parse(&[5, 7, 0, DT_NEEDED]), None);
    assert_eq!(parse(&[]), None);
}

#[test]
fn a_c_librarys_note_is_told_from_a_kernels() {
    let parse = |notes: &[Vec<u8>]| refusal(&with(0x100_0000, &[PT_NOTE], &notes.concat()));
    let build_id = note(b"GNU\0", 3);
    let tag = note(b"GNU\0", NT_GNU_ABI_TAG);
    let linux = note(b"Linux\0", NT_GNU_ABI_TAG);
    assert_eq!(
        parse(&[build_id.clone(), linux.clone(), tag]),
        Some(ProgramError::AbiTag)
    );
    assert_eq!(parse(&[build_id, linux]), None);
    assert_eq!(parse(&[vec![0xff; 40]]), None);
}

#[test]
fn a_process_layout_needs_a_second_sign() {
    let parse = |base, kinds: &[u32]| refusal(&with(base, kinds, &[]));
    assert_eq!(
        parse(USER_BASE, &[PT_GNU_RELRO]),
        Some(ProgramError::UserLayout)
    );
    assert_eq!(parse(USER_BASE, &[PT_TLS]), Some(ProgramError::UserLayout));
    assert_eq!(parse(USER_BASE, &[]), None);
    assert_eq!(parse(0x100_0000, &[PT_TLS, PT_GNU_RELRO]), None);
}

#[test]
fn an_interpreter_is_a_sign_of_its_own() {
    let file = with(0x100_0000, &[PT_INTERP], b"/lib/ld.so");
    assert_eq!(refusal(&file), Some(ProgramError::Interpreter));
}

#[test]
fn an_entry_at_the_elf_header_is_no_code() {
    let mut file = with(0, &[], &[]);
    file[24..32].fill(0);
    let error = elf::parse(&file).unwrap_err().to_string();
    assert!(
        error.starts_with("e_entry is 0x0, expected an address of code"),
        "{error}"
    );
    file[24] = 64;
    elf::parse(&file).unwrap();
}

/// O9: programs of every host, which used to be loaded and to triple-fault.
#[test]
fn programs_and_libraries_of_this_host_are_refused() {
    let own = std::fs::read("/proc/self/exe").unwrap();
    elf::parse(&own).unwrap_err();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let paths = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5));
    let mut libraries: Vec<_> = paths.filter(|path| path.contains(".so")).collect();
    libraries.dedup();
    for path in libraries {
        let file = std::fs::read(path).unwrap();
        for head in [file.len(), file.len().min(1 << 20)] {
            let error = elf::parse_head(&file[..head], file.len() as u64);
            assert!(error.is_err(), "{path} is taken for a kernel");
        }
    }
}
