//! The priority of a thread, as the kernel shows it.

mod common;

use std::thread;

use common::skip;
use engine::device::sys::schedule;

/// Priority and policy of the calling thread: fields 40 and 41 of its `stat` (proc(5)).
fn rank() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    let (_, fields) = text.rsplit_once(')').unwrap();
    let mut fields = fields.split_whitespace().skip(37);
    let mut number = || fields.next().unwrap().parse().unwrap();
    (number(), number())
}

#[test]
fn only_the_thread_that_asked_has_the_priority() {
    const FIFO: (u32, u32) = (7, 1);
    const ORDINARY: (u32, u32) = (0, 0);
    let asked = thread::spawn(|| {
        schedule::set_fifo(7)?;
        let child = thread::spawn(rank).join().unwrap();
        Ok::<_, std::io::Error>((rank(), child))
    });
    match asked.join().unwrap() {
        Ok(ranks) => assert_eq!(ranks, (FIFO, ORDINARY)),
        Err(error) => skip("the priority of a thread", &error.to_string()),
    }
    assert_eq!(rank(), ORDINARY);
}
