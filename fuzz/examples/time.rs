//! x
use std::time::Instant;
fn main() {
    let t0 = Instant::now();
    for i in 0..200u8 { fuzz::operations(&[i, i]); }
    println!("empty ops {:?}", t0.elapsed()/200);
    let t0 = Instant::now();
    for i in 0..200u8 { fuzz::operations(&[i, i, 0,0,0,0,0,0,0, 18, 2]); }
    println!("policy ops {:?}", t0.elapsed()/200);
    let t0 = Instant::now();
    for i in 0..200u8 { fuzz::frame(&[i, i]); }
    println!("frame {:?}", t0.elapsed()/200);
    let text = "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\n";
    let t0 = Instant::now();
    for _ in 0..200u8 { drop(engine::world::World::new(text)); }
    println!("world {:?}", t0.elapsed()/200);
    let mut w = engine::world::World::new(text).unwrap();
    let t0 = Instant::now();
    for _ in 0..200u8 { w.check_invariants().unwrap(); }
    println!("check {:?}", t0.elapsed()/200);
    let t0 = Instant::now();
    for _ in 0..20u8 { w.drain(); }
    println!("drain {:?}", t0.elapsed()/20);
}
