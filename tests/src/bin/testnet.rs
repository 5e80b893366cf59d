fn main() {
    println!("x");
    let t = std::time::Instant::now();
    let n = tunica_tests::testnet::Network::start(tunica_tests::testnet::Profile::Usual).unwrap();
    println!("up {:?}", t.elapsed());
    let p = tunica_tests::testnet::Page::start().unwrap();
    let s = n.service(&tunica_tests::testnet::ServiceOptions::new(80, p.backend())).unwrap();
    println!("service {:?} {} {:#?}", t.elapsed(), s.onion(), s.uploads());
    let c = n.client().unwrap();
    println!("client {:?}", t.elapsed());
    for _ in 0..5 {
        println!("{:?} {:?}", c.connect_afresh(s.onion(), 80).unwrap(), t.elapsed());
    }
}
