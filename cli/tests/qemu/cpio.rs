//! The archive that a Linux kernel unpacks as its first root: cpio, "newc" format
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

/// Directory, in the mode's type bits.
const DIRECTORY: u32 = 0o040_000;
/// Plain file.
const FILE: u32 = 0o100_000;
/// Character device.
const DEVICE: u32 = 0o020_000;
/// Name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// An archive in the making.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory; its parents come first.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, [0, 0], &[]);
    }

    /// Adds a file that everybody may read and execute.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        self.entry(path, FILE | 0o755, [0, 0], content);
    }

    /// Adds a character device by its two numbers.
    pub fn device(&mut self, path: &str, numbers: [u32; 2]) {
        self.entry(path, DEVICE | 0o600, numbers, &[]);
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, [0, 0], &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: [u32; 2], content: &[u8]) {
        let len = u32::try_from(content.len()).expect("less than 4 GiB");
        let name_len = path.len() as u32 + 1;
        self.entries += 1;
        // Inode, mode, owner, group, links, time, size, device of the file, device it is, name, check.
        let [major, minor] = device;
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            len,
            0,
            0,
            major,
            minor,
            name_len,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    /// Headers and contents begin at multiples of four.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
