use super::*;
use crate::image_facts::{KernelFormat, KernelSegment};

const LIMITS: Limits = Limits {
    input: 0x10_0000,
    output: 0x8000,
    memory: 0x1_0000,
};

fn kernel() -> Unpacked {
    let segment = KernelSegment {
        offset: 0,
        file_offset: 0x1000,
        file_size: 0x3000,
        mem_size: 0x4000,
    };
    Unpacked {
        facts: Facts::Kernel(KernelFacts {
            format: KernelFormat::Elf,
            boot: BootMode::Elf,
            version: None,
            cmdline_max: 2047,
            mem_size: 0x4000,
            align: 2 << 20,
            addr_min: 0,
            addr_max: None,
            initrd_addr_max: None,
            entry_offset: 0,
            setup_header: None,
            segments: vec![segment],
        }),
        sha256: ContentHash([7; 32]),
        input_size: 0x5000,
        output_size: 0x4000,
    }
}

fn archive() -> Unpacked {
    Unpacked {
        facts: Facts::Initramfs { crc32: 1 },
        input_size: 0x4000,
        ..kernel()
    }
}

fn job(role: ImageRole) -> Job {
    Job {
        role,
        limits: LIMITS,
    }
}

#[test]
fn an_answer_belongs_to_its_job_and_its_file() {
    let elf = job(ImageRole::Kernel(BootMode::Elf));
    let whole = job(ImageRole::Kernel(BootMode::BzImage));
    let initramfs = job(ImageRole::Initramfs);
    kernel().check(&elf, 0x4000).unwrap();
    archive().check(&initramfs, 0x4000).unwrap();
    for (answer, job) in [(kernel(), initramfs), (kernel(), whole), (archive(), elf)] {
        let error = answer.check(&job, 0x4000).unwrap_err();
        assert_eq!(error, AnswerError::Role { asked: job.role });
    }
}

#[test]
fn sizes_are_within_the_limits_and_those_of_the_file() {
    let elf = job(ImageRole::Kernel(BootMode::Elf));
    let refused = |len: u64, change: &dyn Fn(&mut Unpacked)| {
        let mut answer = kernel();
        change(&mut answer);
        answer.check(&elf, len).unwrap_err().to_string()
    };
    assert_eq!(
        refused(0x4000, &|u| u.input_size = LIMITS.input + 1),
        "the image is 1048577 bytes, out of range (1..=1048576)"
    );
    assert!(refused(0x4000, &|u| u.input_size = 0).starts_with("the image is 0"));
    assert!(refused(0x8001, &|u| u.output_size = 0x8001).starts_with("the output is 32769"));
    assert!(refused(0x3fff, &|_| {}).starts_with("the stated output is 16384"));
    let greedy = |u: &mut Unpacked| {
        if let Facts::Kernel(facts) = &mut u.facts {
            facts.mem_size = LIMITS.memory + 1;
        }
    };
    assert!(refused(0x4000, &greedy).starts_with("the kernel's memory is 65537"));
    let error = Unpacked {
        output_size: 0x2000,
        ..kernel()
    }
    .check(&elf, 0x2000);
    assert!(matches!(error, Err(AnswerError::Facts(_))));
    let longer = Unpacked {
        input_size: 0x4001,
        ..archive()
    };
    longer
        .check(&job(ImageRole::Initramfs), 0x4000)
        .unwrap_err();
}

#[test]
fn what_crosses_arrives_as_it_left() {
    for answer in [kernel(), archive()] {
        let text = serde_json::to_string(&answer).unwrap();
        assert!(text.contains(&"07".repeat(32)), "{text}");
        assert_eq!(serde_json::from_str::<Unpacked>(&text).unwrap(), answer);
    }
    let job = job(ImageRole::Kernel(BootMode::BzImage));
    let text = serde_json::to_string(&job).unwrap();
    assert_eq!(serde_json::from_str::<Job>(&text).unwrap(), job);
}

#[test]
fn a_hash_of_another_length_or_alphabet_is_refused() {
    for text in [
        "",
        "07",
        &"07".repeat(33),
        &"0g".repeat(32),
        &"\u{f6}".repeat(32),
    ] {
        let text = format!("\"{text}\"");
        let error = serde_json::from_str::<ContentHash>(&text).unwrap_err();
        assert!(error.to_string().contains("64 hex digits"), "{error}");
    }
}

#[test]
fn an_errors_text_is_bounded_and_cannot_act_on_a_terminal() {
    let sent = format!(
        r#"{{"class":"invalid","text":"\u001b[2Kdb: \u009bgone\n{}"}}"#,
        "\u{202e}".repeat(2000)
    );
    let error: UnpackError = serde_json::from_str(&sent).unwrap();
    assert_eq!(error.class(), UnpackErrorClass::Invalid);
    let text = error.to_string();
    assert!(text.starts_with("?[2Kdb: ?gone??"), "{text}");
    assert!(text.len() <= MAX_TEXT);
    assert!(text.bytes().all(|b| b == b' ' || b.is_ascii_graphic()));
}
