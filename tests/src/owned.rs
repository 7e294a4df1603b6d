//! A guest image whose guest is owned: before the agent starts, so does a script that is nobody's.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Length of the header of a file in the archive: a magic and 13 numbers of eight digits.
const HEADER: usize = 110;

/// Makes a copy of the guest image `from` in the directory `to`. Its VMs are as they are, and run
/// `script` with `/busybox` beside the agent, as root. It finds the processes of the VM in `/seen`.
///
/// # Panics
/// If that fails.
pub fn image(from: &Path, to: &Path, script: &str) {
    let read = |name: &str| fs::read(from.join(name)).expect("a file of the guest image");
    let mut initramfs = read("initramfs.cpio");
    let agent = file(&initramfs, "init").expect("the agent").to_vec();
    let busybox = fs::read("/bin/busybox").expect("/bin/busybox");
    // The kernel unpacks one archive after the other, and the last one wins.
    let init = "#!/busybox sh\n/busybox mount -t proc none /seen\n\
                /busybox sh /script </dev/null >/dev/null 2>&1 &\nexec /agent\n";
    add(&mut initramfs, "dev", 0o04_0755, 0, b"");
    add(&mut initramfs, "seen", 0o04_0755, 0, b"");
    add(&mut initramfs, "dev/null", 0o02_0666, 3, b"");
    add(&mut initramfs, "busybox", 0o10_0755, 0, &busybox);
    add(&mut initramfs, "script", 0o10_0644, 0, script.as_bytes());
    add(&mut initramfs, "agent", 0o10_0755, 0, &agent);
    add(&mut initramfs, "init", 0o10_0755, 0, init.as_bytes());
    add(&mut initramfs, "TRAILER!!!", 0, 0, b"");
    let write = |name: &str, bytes: &[u8]| fs::write(to.join(name), bytes).expect("a file");
    write("initramfs.cpio", &initramfs);
    write("vmlinuz", &read("vmlinuz"));
    let mut manifest: Value = serde_json::from_slice(&read("image.json")).expect("image.json");
    let fields = manifest.as_object_mut().expect("fields");
    let digest = sha256(&to.join("initramfs.cpio"));
    fields.insert("initramfs_size".to_owned(), initramfs.len().into());
    fields.insert("initramfs_sha256".to_owned(), digest.into());
    write("image.json", manifest.to_string().as_bytes());
}

/// The content of a file in the archive (Linux, `driver-api/early-userspace/buffer-format.rst`).
fn file<'a>(mut archive: &'a [u8], wanted: &str) -> Option<&'a [u8]> {
    loop {
        let number = |at: usize| {
            let digits = archive.get(6 + 8 * at..14 + 8 * at)?;
            usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        };
        let (len, name_len) = (number(6)?, number(11)?);
        let name = archive.get(HEADER..HEADER + name_len - 1)?;
        let start = aligned(HEADER + name_len);
        let content = archive.get(start..start + len)?;
        if name == wanted.as_bytes() {
            return Some(content);
        }
        archive = archive.get(start + aligned(len)..)?;
    }
}

/// Adds a file to the archive; `minor` is that of a device of memory.
fn add(archive: &mut Vec<u8>, name: &str, mode: u32, minor: u32, content: &[u8]) {
    let len = u32::try_from(content.len()).expect("a small file");
    let name_len = u32::try_from(name.len() + 1).expect("a short name");
    let major = u32::from(minor > 0);
    archive.extend_from_slice(b"070701");
    for number in [0, mode, 0, 0, 1, 0, len, 0, 0, major, minor, name_len, 0] {
        archive.extend_from_slice(format!("{number:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(aligned(archive.len()), 0);
    archive.extend_from_slice(content);
    archive.resize(aligned(archive.len()), 0);
}

/// Everything in the archive begins at a multiple of four.
const fn aligned(len: usize) -> usize {
    len.next_multiple_of(4)
}

fn sha256(file: &Path) -> String {
    let done = Command::new("sha256sum")
        .arg(file)
        .output()
        .expect("sha256sum");
    let said = String::from_utf8(done.stdout).expect("text");
    said.split(' ').next().unwrap_or_default().to_owned()
}
