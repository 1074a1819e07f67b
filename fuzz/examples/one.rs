//! x
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let d: Vec<u8> = (0..a[2].len()/2).map(|i| u8::from_str_radix(&a[2][2*i..2*i+2],16).unwrap()).collect();
    let t = fuzz::TARGETS.iter().find(|t| t.0 == a[1]).unwrap();
    t.1(&d);
}
