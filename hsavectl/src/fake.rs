//! A tree of files that stands for a machine, for tests, and programs that do to it what the real ones do.

use crate::system::{Ran, Result, Runner, System};
use std::{
    cell::RefCell,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    rc::Rc,
    sync::atomic::{AtomicU32, Ordering},
};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// What programs are asked to do, in order, as one line each.
type Asked = Rc<RefCell<Vec<String>>>;

/// What a program prints, or says on failure, given its words and the root.
type Answer = Rc<dyn Fn(&str, &Path) -> std::result::Result<String, String>>;

/// Gone when dropped.
pub struct Fake {
    root: PathBuf,
    pub asked: Asked,
    answer: RefCell<Answer>,
}

impl Fake {
    pub fn new() -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("hsavectl-{}-{number}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        let this = Self { root, asked: Asked::default(), answer: RefCell::new(Rc::new(|_, _| Ok(String::new()))) };
        this.file("proc/sys/kernel/osrelease", "6.12\n");
        this.file("proc/self/status", "Name:\tx\nUid:\t0\t0\t0\t0\n");
        this
    }

    /// What programs do from now on.
    pub fn answers(&self, answer: impl Fn(&str, &Path) -> std::result::Result<String, String> + 'static) {
        *self.answer.borrow_mut() = Rc::new(answer);
    }

    pub fn system(&self) -> System {
        let (asked, answer, root) = (self.asked.clone(), self.answer.borrow().clone(), self.root.clone());
        let runner: Runner = Box::new(move |name: &str, words: &[&str]| -> Result<Ran> {
            let line = format!("{name} {}", words.join(" "));
            asked.borrow_mut().push(line.clone());
            Ok(match answer(&line, &root) {
                Ok(output) => Ran { success: true, output, errors: String::new() },
                Err(errors) => Ran { success: false, output: String::new(), errors },
            })
        });
        System::at(&self.root, runner)
    }

    pub fn dir(&self, path: &str) {
        fs::create_dir_all(self.root.join(path)).unwrap();
    }

    pub fn file(&self, path: &str, text: &str) {
        put(&self.root, path, text);
    }

    pub fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path)).ok()
    }

    /// A process with these descriptors.
    pub fn process(&self, pid: u32, name: &str, targets: &[&str]) {
        self.file(&format!("proc/{pid}/comm"), name);
        self.dir(&format!("proc/{pid}/fd"));
        for (fd, target) in targets.iter().enumerate() {
            symlink(target, self.root.join(format!("proc/{pid}/fd/{fd}"))).unwrap();
        }
    }

    /// An engine of the base's.
    pub fn engine(&self, name: &str, version: &str) {
        for (file, text) in [("version", version), ("interface", "1"), ("vms", "0")] {
            self.file(&format!("sys/kernel/hsave/engines/{name}/{file}"), &format!("{text}\n"));
        }
    }

    /// A VM of the base's.
    pub fn vm(&self, id: &str, name: &str, engine: &str) {
        let pid = id.split('-').next().unwrap();
        let files = [
            ("pid", pid),
            ("name", name),
            ("engine", engine),
            ("vcpus", "2"),
            ("upgrades", "0"),
            ("pause_ns", "0"),
            ("error", ""),
            ("upgrade", ""),
        ];
        for (file, text) in files {
            self.file(&format!("sys/kernel/hsave/vms/{id}/{file}"), &format!("{text}\n"));
        }
    }
}

/// Writes a file under `root`.
pub fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}
