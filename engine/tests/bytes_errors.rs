//! ICMP on frames: queries, errors in both directions and around a hairpin, byte by byte (RFC 5508,
//! RFC 4787 REQ-12, RFC 5382 REQ-9 and 10).

mod bytes_support;

use bytes_support::*;
use engine::drop_reason::DropReason;
use engine::wire::build::Envelope;
use engine::wire::tcp::{ACK, SYN};
use engine::wire::{checksum, icmp, ipv4};
use engine::world::{EXTERNAL, World};

/// Types and codes of every error that is translated.
fn errors() -> impl Iterator<Item = (u8, u8)> {
    (0..16).map(|code| (icmp::UNREACHABLE, code)).chain([
        (11, 0),
        (11, 1),
        (12, 0),
        (12, 1),
        (12, 2),
    ])
}

/// No option, and as many as there is room for.
const OPTIONS: [&[u8]; 2] = [
    &[],
    &[
        148, 4, 0, 0, 7, 35, 4, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6,
        6, 6, 7, 7, 7, 7, 8, 8, 8, 8, 1,
    ],
];

/// What a client asks and the server answers, of each kind of flow. The gateway keeps the ports.
fn exchanges(options: &[u8]) -> [(Vec<u8>, Vec<u8>); 4] {
    let with = |envelope: Envelope| Envelope {
        options: options.to_vec(),
        ..envelope
    };
    let out = with(inside(CLIENT, SERVER));
    let back = with(outside(SERVER, EXTERNAL));
    let stamp =
        |envelope: &Envelope, icmp_type| envelope.icmp(icmp_type, 0, [0, 9, 0, 1], &[3; 12]);
    [
        (
            out.udp(20_000, 53, &[7; 64]),
            back.udp(53, 20_000, &[8; 64]),
        ),
        (
            out.tcp(20_000, 80, SYN, b""),
            back.tcp(80, 20_000, SYN | ACK, b""),
        ),
        (out.echo_request(7, &[5; 40]), back.echo_reply(7, &[5; 40])),
        (
            stamp(&out, icmp::TIMESTAMP),
            stamp(&back, icmp::TIMESTAMP_REPLY),
        ),
    ]
}

/// How much of a packet an error quotes: 8 bytes after its header, and all of it.
fn quote_lens(packet: &[u8]) -> [usize; 2] {
    [usize::from(packet[0] & 15) * 4 + 8, packet.len()]
}

fn drops(world: &World, reason: DropReason) -> u64 {
    let snapshot = world.snapshot();
    snapshot.dropped[reason as usize]
}

#[test]
fn rfc5508_1_queries_and_replies_pass() {
    let mut world = world("");
    for (out, back) in exchanges(&[]) {
        let sent = through(&mut world, INSIDE, &out);
        assert_eq!(header(&sent).source(), EXTERNAL);
        let got = through(&mut world, OUTSIDE, &back);
        assert_eq!(header(&got).destination(), CLIENT);
    }
}

#[test]
fn rfc5508_1a_one_identifier_for_all_remotes() {
    let mut world = world("[nat]\nmapping = \"eim\"\n");
    // Taken by another client, so that it must be changed.
    through(
        &mut world,
        INSIDE,
        &inside(OTHER, SERVER).echo_request(7, b""),
    );
    let identifiers = [SERVER, STRANGER, BEYOND].map(|remote| {
        let sent = through(
            &mut world,
            INSIDE,
            &inside(CLIENT, remote).echo_request(7, b""),
        );
        [sent[38], sent[39]]
    });
    assert_ne!(identifiers[0], [0, 7]);
    assert!(identifiers.iter().all(|id| *id == identifiers[0]));
}

#[test]
fn rfc5508_2_a_reply_passes_for_sixty_seconds() {
    for (more, timeout_ms) in [("", 60_000), ("[timers]\nicmp_timeout_s = 90\n", 90_000)] {
        for (idle, passes) in [(timeout_ms - 1, 1), (timeout_ms, 0)] {
            let mut world = world(more);
            through(
                &mut world,
                INSIDE,
                &inside(CLIENT, SERVER).echo_request(7, b""),
            );
            world.advance_ms(idle);
            let reply = outside(SERVER, EXTERNAL).echo_reply(7, b"");
            let sent = pass(&mut world, OUTSIDE, &reply);
            assert_eq!(sent[INSIDE].len(), passes, "{idle} ms");
        }
    }
}

#[test]
fn rfc5508_2a_the_query_timer_can_be_changed_while_it_runs() {
    let mut world = world("");
    through(
        &mut world,
        INSIDE,
        &inside(CLIENT, SERVER).echo_request(7, b""),
    );
    assert!(world.reconfigure(&format!("{TWO_ARM}[timers]\nicmp_timeout_s = 90\n")));
    world.pass_ms(89_999, 1_000);
    through(
        &mut world,
        OUTSIDE,
        &outside(SERVER, EXTERNAL).echo_reply(7, b""),
    );
}

#[test]
fn rfc7857_11_a_query_mapping_goes_with_its_last_session() {
    let mut world = world("[nat]\nmapping = \"eim\"\n");
    for remote in [SERVER, STRANGER] {
        through(
            &mut world,
            INSIDE,
            &inside(CLIENT, remote).echo_request(7, b""),
        );
        world.pass_ms(20_000, 1_000);
    }
    assert_eq!((world.totals().sessions, world.totals().mappings), (2, 1));
    world.pass_ms(90_000, 1_000);
    assert_eq!((world.totals().sessions, world.totals().mappings), (0, 0));
}

/// An error from outside about a packet of every kind, with and without options, quoted whole and in
/// part: all bytes of what the client gets are those that an error about its own packet would have.
#[test]
fn rfc5508_4_errors_from_outside_are_reverted_to_what_the_client_sent() {
    for options in OPTIONS {
        for (out, _) in exchanges(options) {
            let mut world = world("");
            let sent = through(&mut world, INSIDE, &out);
            let original = one_hop_further(&out);
            for (icmp_type, code) in errors() {
                for quote in quote_lens(&original) {
                    let rest = [1, 0, 5, 0];
                    let error = |envelope: Envelope, about: &[u8]| {
                        envelope.icmp(icmp_type, code, rest, &about[..quote])
                    };
                    let got = error(outside(BEYOND, EXTERNAL), packet(&sent));
                    let got = through(&mut world, OUTSIDE, &got);
                    let expected = error(to_inside(BEYOND, CLIENT), &original);
                    assert_eq!(got, expected, "{icmp_type}/{code}, {quote} bytes");
                }
            }
        }
    }
}

#[test]
fn rfc5508_4_errors_about_no_session_are_dropped() {
    let mut world = world("[pool]\naddresses = \"198.51.100.20\"\n");
    let about = Envelope::new([198, 51, 100, 20].into(), SERVER).udp(20_000, 53, b"");
    let envelope = outside(BEYOND, [198, 51, 100, 20].into());
    for (icmp_type, code) in errors() {
        silence(
            &mut world,
            OUTSIDE,
            &envelope.icmp_error(icmp_type, code, &about, 576),
        );
    }
    assert_eq!(drops(&world, DropReason::IcmpNoSession), 21);
}

/// An error from inside, by the host itself and by a router before it: the quote is what the server
/// sent, and the gateway's address hides who complains.
#[test]
fn rfc5508_5_errors_from_inside_show_only_the_external_address() {
    for options in OPTIONS {
        for (out, back) in exchanges(options) {
            let mut world = world("");
            through(&mut world, INSIDE, &out);
            let got = through(&mut world, OUTSIDE, &back);
            let original = one_hop_further(&back);
            for (icmp_type, code) in errors() {
                for (from, quote) in [CLIENT, WITHIN].into_iter().zip(quote_lens(&original)) {
                    let error = |envelope: Envelope, about: &[u8]| {
                        with_df(envelope).icmp(icmp_type, code, [1, 0, 5, 0], &about[..quote])
                    };
                    let sent = error(inside(from, SERVER), packet(&got));
                    let sent = through(&mut world, INSIDE, &sent);
                    let expected = error(to_outside(EXTERNAL, SERVER), &original);
                    assert_eq!(sent, expected, "{icmp_type}/{code}, {quote} bytes");
                }
            }
        }
    }
}

#[test]
fn rfc5508_5_errors_from_inside_about_no_session_are_dropped() {
    let mut world = world("");
    let about = Envelope::new(SERVER, CLIENT).udp(53, 20_000, b"");
    for (icmp_type, code) in errors() {
        let error = inside(CLIENT, SERVER).icmp_error(icmp_type, code, &about, 576);
        silence(&mut world, INSIDE, &error);
    }
    assert_eq!(drops(&world, DropReason::IcmpNoSession), 21);
}

#[test]
fn rfc5508_3_a_wrong_icmp_checksum_is_dropped_with_its_own_counter() {
    let mut world = world("");
    let out = inside(CLIENT, SERVER).udp(20_000, 53, b"question");
    let sent = through(&mut world, INSIDE, &out);
    let error = outside(BEYOND, EXTERNAL).icmp_error(icmp::UNREACHABLE, 1, &sent, 576);
    for at in [34, 35, 36, 37, 42, error.len() - 1] {
        let mut wrong = error.clone();
        wrong[at] ^= 1;
        // An error of another code, or none at all, is dropped the same way if its sum is wrong.
        if wrong[34] == error[34] {
            silence(&mut world, OUTSIDE, &wrong);
        }
    }
    assert_eq!(drops(&world, DropReason::IcmpBadChecksum), 5);
    through(&mut world, OUTSIDE, &error);
}

#[test]
fn rfc5508_3a_a_wrong_embedded_header_checksum_is_dropped_with_its_own_counter() {
    for options in OPTIONS {
        let mut world = world("");
        let out = Envelope {
            options: options.to_vec(),
            ..inside(CLIENT, SERVER)
        }
        .udp(20_000, 53, b"question");
        let mut sent = through(&mut world, INSIDE, &out);
        sent[14 + ipv4::TTL] += 1;
        let error = outside(BEYOND, EXTERNAL).icmp_error(icmp::UNREACHABLE, 1, &sent, 576);
        silence(&mut world, OUTSIDE, &error);
        let dropped: Vec<_> = world.snapshot().drops().collect();
        assert_eq!(dropped, [(DropReason::IcmpBadEmbeddedChecksum, 1)]);
    }
}

/// With options the transport header lies further on; that of a packet without would be read wrongly.
#[test]
fn rfc5508_3b_embedded_options_of_every_length_are_skipped() {
    for words in 0..=10 {
        let mut world = world("");
        let out = Envelope {
            options: vec![1; words * 4],
            ..inside(CLIENT, SERVER)
        };
        let out = out.udp(20_000, 53, b"question");
        let sent = through(&mut world, INSIDE, &out);
        let quote = 20 + words * 4 + 8;
        let error = outside(BEYOND, EXTERNAL).icmp_error(icmp::TIME_EXCEEDED, 0, &sent, quote);
        let got = through(&mut world, OUTSIDE, &error);
        assert_eq!(got[42..], one_hop_further(&out)[..quote]);
    }
}

#[test]
fn rfc5508_3c_a_wrong_embedded_transport_checksum_passes_and_stays_as_wrong() {
    for (out, at) in [
        (inside(CLIENT, SERVER).udp(20_000, 53, &[7; 30]), 6),
        (inside(CLIENT, SERVER).tcp(20_000, 80, SYN, b""), 16),
        (inside(CLIENT, SERVER).echo_request(7, &[7; 30]), 2),
    ] {
        let mut world = world("");
        let mut sent = through(&mut world, INSIDE, &out);
        sent[34 + at] ^= 0x55;
        let error = outside(BEYOND, EXTERNAL).icmp_error(icmp::UNREACHABLE, 3, &sent, 576);
        let [inside, _] = pass(&mut world, OUTSIDE, &error);
        let got = &inside[0][42..];
        assert!(checksum::is_right(&inside[0][34..]));
        assert!(checksum::is_right(&got[..20]));
        // Off by the same number as it was before.
        let original = one_hop_further(&out);
        let field = |packet: &[u8]| u16::from_be_bytes([packet[20 + at], packet[21 + at]]);
        let wrong_by =
            |wrong: u16, right: u16| checksum::fold(checksum::delta16(right, wrong)) % 0xFFFF;
        let mut before = sent.clone();
        before[34 + at] ^= 0x55;
        assert_eq!(
            wrong_by(field(got), field(&original)),
            wrong_by(field(packet(&sent)), field(packet(&before)))
        );
        // And nothing else differs.
        let mut repaired = got.to_vec();
        repaired[20 + at..22 + at].copy_from_slice(&original[20 + at..22 + at]);
        assert_eq!(repaired, original);
    }
}

/// What follows the quote stays byte for byte: extensions, told by RFC 4884's count or not, and the
/// zeros that pad a short quote.
#[test]
fn rfc5508_3d_extensions_and_padding_stay_as_they_are() {
    let mut extension = vec![0x20, 0, 0, 0, 0, 8, 1, 1, 0, 1, 0x11, 0x40];
    let sum = !checksum::sum(&extension);
    extension[2..4].copy_from_slice(&sum.to_be_bytes());
    for (data, counted) in [(&[7; 200][..], true), (&[7; 200], false), (&[7; 3], true)] {
        for out in [
            inside(CLIENT, SERVER).udp(20_000, 53, data),
            inside(CLIENT, SERVER).tcp(20_000, 80, SYN, data),
            inside(CLIENT, SERVER).echo_request(7, data),
        ] {
            let mut world = world("");
            let sent = through(&mut world, INSIDE, &out);
            let error = |envelope: Envelope, about: &[u8]| {
                let mut quote = about[..about.len().min(128)].to_vec();
                quote.resize(128, 0);
                quote.extend(&extension);
                envelope.icmp(11, 0, [0, if counted { 32 } else { 0 }, 0, 0], &quote)
            };
            let got = error(outside(BEYOND, EXTERNAL), packet(&sent));
            let got = through(&mut world, OUTSIDE, &got);
            let expected = error(to_inside(BEYOND, CLIENT), &one_hop_further(&out));
            assert_eq!(got, expected);
        }
    }
}

/// Errors of both directions in the last millisecond of a session: it ends in time.
#[test]
fn rfc5508_6_errors_refresh_nothing() {
    for ((out, back), timeout_ms) in exchanges(&[])
        .into_iter()
        .zip([300_000, 240_000, 60_000, 60_000])
    {
        let mut world = world("");
        let sent = through(&mut world, INSIDE, &out);
        let about_answer = Envelope::new(SERVER, CLIENT).frame(out[23], &back[34..]);
        world.advance_ms(timeout_ms - 1);
        let from_outside = outside(BEYOND, EXTERNAL).icmp_error(3, 1, &sent, 28);
        let from_inside = inside(CLIENT, SERVER).icmp_error(3, 1, &about_answer, 28);
        // RFC 7857 section 7.1: nor do those that answer packets from outside.
        through(&mut world, OUTSIDE, &from_outside);
        through(&mut world, INSIDE, &from_inside);
        world.advance_ms(1);
        silence(&mut world, INSIDE, &from_inside);
        let sent = pass(&mut world, OUTSIDE, &back);
        assert!(sent.iter().all(Vec::is_empty));
    }
}

#[test]
fn rfc7857_7_1_an_error_that_answers_an_inbound_packet_does_not_refresh() {
    let mut world = world("[nat]\nmapping = \"eim\"\n");
    let out = inside(CLIENT, SERVER).udp(20_000, 53, b"question");
    let back = outside(SERVER, EXTERNAL).udp(53, 20_000, b"answer");
    through(&mut world, INSIDE, &out);
    // An error every second, from whoever gets the answers: the mapping still ends in time.
    for _ in 0..299 {
        world.advance_ms(1_000);
        let got = through(&mut world, OUTSIDE, &back);
        let error = inside(CLIENT, SERVER).icmp_error(3, 3, &got, 576);
        through(&mut world, INSIDE, &error);
    }
    world.advance_ms(1_000);
    assert!(pass(&mut world, OUTSIDE, &back).iter().all(Vec::is_empty));
}

/// Every error, from the server, from a router and from inside, and then the flow goes on.
#[test]
fn rfc4787_12_no_error_ends_a_mapping_or_session() {
    for (out, back) in exchanges(&[]) {
        let mut world = world("[nat]\nmapping = \"eim\"\n");
        let sent = through(&mut world, INSIDE, &out);
        let got = through(&mut world, OUTSIDE, &back);
        let before = world.totals();
        for (icmp_type, code) in errors() {
            for from in [SERVER, BEYOND, STRANGER] {
                let error = outside(from, EXTERNAL).icmp_error(icmp_type, code, &sent, 576);
                through(&mut world, OUTSIDE, &error);
            }
            let error = inside(CLIENT, SERVER).icmp_error(icmp_type, code, &got, 576);
            through(&mut world, INSIDE, &error);
        }
        world.pass_ms(20_000, 1_000);
        let after = world.totals();
        assert_eq!(
            (before.sessions, before.mappings),
            (after.sessions, after.mappings)
        );
        assert_eq!((after.expired, after.removed), (0, 0));
        let again = through(&mut world, OUTSIDE, &back);
        assert_eq!(packet(&again), packet(&got));
    }
}

/// The same for an established connection, as its timer is another.
#[test]
fn rfc5382_10_no_error_ends_a_connection() {
    let mut world = world("");
    let out = |flags| with_df(inside(CLIENT, SERVER)).tcp(20_000, 80, flags, b"");
    let back = |flags| outside(SERVER, EXTERNAL).tcp(80, 20_000, flags, b"");
    let sent = through(&mut world, INSIDE, &out(SYN));
    through(&mut world, OUTSIDE, &back(SYN | ACK));
    through(&mut world, INSIDE, &out(ACK));
    for (icmp_type, code) in errors() {
        let error = outside(SERVER, EXTERNAL).icmp_error(icmp_type, code, &sent, 576);
        through(&mut world, OUTSIDE, &error);
    }
    world.advance_ms(7_439_000);
    through(&mut world, OUTSIDE, &back(ACK));
}

#[test]
fn rfc4787_12a_errors_pass_from_whatever_address() {
    let mut world = world("");
    let sent = through(
        &mut world,
        INSIDE,
        &inside(CLIENT, SERVER).udp(20_000, 53, b""),
    );
    for from in [
        [203, 0, 113, 80],
        [192, 0, 2, 1],
        [100, 64, 0, 1],
        [172, 16, 9, 9],
    ] {
        let error = outside(from.into(), EXTERNAL).icmp_error(11, 0, &sent, 28);
        assert_eq!(
            header(&through(&mut world, OUTSIDE, &error))
                .source()
                .octets(),
            from
        );
    }
}

#[test]
fn rfc4787_12b_destination_unreachable_reaches_udp() {
    let mut world = world("");
    let sent = through(
        &mut world,
        INSIDE,
        &inside(CLIENT, SERVER).udp(20_000, 53, b""),
    );
    let error = outside(SERVER, EXTERNAL).icmp_error(icmp::UNREACHABLE, 3, &sent, 576);
    assert_eq!(
        header(&through(&mut world, OUTSIDE, &error)).destination(),
        CLIENT
    );
}

#[test]
fn rfc5382_9_destination_unreachable_reaches_tcp() {
    let mut world = world("");
    let syn = inside(CLIENT, SERVER).tcp(20_000, 80, SYN, b"");
    let sent = through(&mut world, INSIDE, &syn);
    // 8 bytes of the segment are enough.
    let error = outside(SERVER, EXTERNAL).icmp_error(icmp::UNREACHABLE, 3, &sent, 28);
    let got = through(&mut world, OUTSIDE, &error);
    assert_eq!(got[42..], one_hop_further(&syn)[..28]);
}

/// The target of a forward complains to a neighbour that came to it by the external address, and the
/// other way round.
#[test]
fn rfc5508_7_hairpinned_errors() {
    for icmp_from_target in [true, false] {
        for quote in [28, 576] {
            let mut world = world(FORWARD);
            let there = inside(CLIENT, EXTERNAL).udp(20_000, 8443, b"question");
            let back = inside(OTHER, EXTERNAL).udp(443, 20_000, b"answer");
            let asked = answer(&mut world, INSIDE, &there);
            assert_eq!(header(&asked).destination(), OTHER);
            let answered = answer(&mut world, INSIDE, &back);
            assert_eq!(header(&answered).destination(), CLIENT);
            let (from, to, about, original) = if icmp_from_target {
                (OTHER, CLIENT, &asked, &there)
            } else {
                (CLIENT, OTHER, &answered, &back)
            };
            let error = with_df(inside(from, EXTERNAL)).icmp_error(3, 3, about, quote);
            let got = answer(&mut world, INSIDE, &error);
            // 7a: to the embedded packet's source; from the external address.
            let original = one_hop_further(original);
            let quote = quote.min(original.len());
            let expected = with_df(to_inside(EXTERNAL, to)).icmp(3, 3, [0; 4], &original[..quote]);
            assert_eq!(got, expected);
        }
    }
}

/// RFC 7857 section 12: a router inside that complains about a hairpinned packet has no mapping of
/// its own.
#[test]
fn rfc7857_12_hairpinned_errors_of_a_router_without_a_mapping() {
    let mut world = world(FORWARD);
    let there = inside(CLIENT, EXTERNAL).udp(20_000, 8443, b"question");
    let asked = answer(&mut world, INSIDE, &there);
    let error = with_df(inside(WITHIN, EXTERNAL)).icmp_error(11, 0, &asked, 28);
    let got = answer(&mut world, INSIDE, &error);
    assert_eq!(
        (header(&got).source(), header(&got).destination()),
        (EXTERNAL, CLIENT)
    );
    assert_eq!(got[42..], one_hop_further(&there)[..28]);
}

#[test]
fn rfc5508_8_a_refused_session_is_answered_as_configured() {
    for (on_refusal, expected) in [
        ("", Some([3, 1])),
        ("on_refusal = \"host-unreachable\"\n", Some([3, 1])),
        ("on_refusal = \"admin-prohibited\"\n", Some([3, 13])),
        // 5508-9: policy may suppress it.
        ("on_refusal = \"silent\"\n", None),
    ] {
        let mut world = world(&format!("[pool]\nports = 20000\n[icmp]\n{on_refusal}"));
        through(
            &mut world,
            INSIDE,
            &inside(CLIENT, SERVER).udp(20_000, 53, b""),
        );
        let refused = inside(OTHER, SERVER).udp(20_000, 53, b"");
        match expected {
            None => silence(&mut world, INSIDE, &refused),
            Some(expected) => {
                let told = answer(&mut world, INSIDE, &refused);
                assert_eq!(icmp_type(&told), expected);
                assert_eq!(told[42..], refused[14..]);
            }
        }
        assert_eq!(drops(&world, DropReason::PortsExhausted), 1);
    }
}

#[test]
fn rfc5508_9_errors_can_be_turned_off() {
    let mut world = world("[icmp]\nerrors_per_second = 0\n");
    let expiring = Envelope {
        ttl: 1,
        ..inside(CLIENT, SERVER)
    };
    silence(&mut world, INSIDE, &expiring.udp(20_000, 53, b""));
    assert_eq!(world.snapshot().errors_suppressed, 1);
}

#[test]
fn rfc5508_10a_time_exceeded_is_made_on_both_sides() {
    let mut world = world(FORWARD);
    let expiring = |envelope: Envelope| Envelope { ttl: 1, ..envelope };
    let frames = [
        (
            INSIDE,
            expiring(inside(CLIENT, SERVER)).udp(20_000, 33_434, b"probe"),
        ),
        (
            INSIDE,
            expiring(inside(CLIENT, SERVER)).echo_request(7, b"probe"),
        ),
        (
            INSIDE,
            expiring(inside(CLIENT, SERVER)).tcp(20_000, 80, SYN, b""),
        ),
        (
            OUTSIDE,
            expiring(outside(SERVER, EXTERNAL)).udp(53, 8443, b"probe"),
        ),
    ];
    for (interface, frame) in frames {
        let told = answer(&mut world, interface, &frame);
        let from = [[10, 77, 0, 1].into(), EXTERNAL][interface];
        assert_eq!(icmp_type(&told), [11, 0]);
        assert_eq!(header(&told).source(), from);
        assert_eq!(header(&told).destination(), header(&frame).source());
        assert_eq!(told[42..], frame[14..], "quoted as its sender knows it");
    }
}

#[test]
fn rfc5508_10a_time_exceeded_from_beyond_passes() {
    let mut world = world("");
    let probe = inside(CLIENT, SERVER).udp(20_000, 33_434, b"probe");
    let sent = through(&mut world, INSIDE, &probe);
    let error = outside(BEYOND, EXTERNAL).icmp_error(icmp::TIME_EXCEEDED, 0, &sent, 576);
    let got = through(&mut world, OUTSIDE, &error);
    assert_eq!(got[42..], one_hop_further(&probe));
}

/// RFC 4787 REQ-13, in both directions: with the MTU of the next hop.
#[test]
fn rfc4787_13_fragmentation_needed_is_made_on_both_sides() {
    for mtu in [68, 576, 1280, 1400, 1499] {
        let mut world = world("");
        let size = usize::from(mtu) - 28;
        through(
            &mut world,
            INSIDE,
            &inside(CLIENT, SERVER).udp(20_000, 53, b""),
        );
        for (interface, envelope, ports) in [
            (INSIDE, inside(CLIENT, SERVER), (20_000, 53)),
            (OUTSIDE, outside(SERVER, EXTERNAL), (53, 20_000)),
        ] {
            world.set_mtu(1 - interface, mtu);
            let fits = with_df(envelope.clone()).udp(ports.0, ports.1, &vec![1; size]);
            through(&mut world, interface, &fits);
            let big = with_df(envelope).udp(ports.0, ports.1, &vec![1; size + 1]);
            let told = answer(&mut world, interface, &big);
            assert_eq!(icmp_type(&told), [3, 4]);
            assert_eq!(u16::from_be_bytes([told[40], told[41]]), mtu);
            assert_eq!(header(&told).destination(), header(&big).source());
            let quoted = told.len() - 42;
            assert_eq!(told[42..], big[14..14 + quoted]);
            world.set_mtu(1 - interface, 1500);
        }
    }
}

/// Translation changes no length, so the MTU that a router names holds for the client, too; 0 (a
/// router from before RFC 1191) stays 0.
#[test]
fn rfc5508_10a_fragmentation_needed_from_beyond_keeps_its_mtu() {
    let mut world = world("");
    let big = with_df(inside(CLIENT, SERVER)).tcp(20_000, 80, SYN, &[1; 1200]);
    let sent = through(&mut world, INSIDE, &big);
    for mtu in [0u16, 68, 576, 1280, 1499] {
        let [high, low] = mtu.to_be_bytes();
        let error = |envelope: Envelope, about: &[u8]| {
            envelope.icmp(3, 4, [0, 0, high, low], &about[..548])
        };
        let got = error(outside(BEYOND, EXTERNAL), packet(&sent));
        let got = through(&mut world, OUTSIDE, &got);
        let expected = error(to_inside(BEYOND, CLIENT), &one_hop_further(&big));
        assert_eq!(got, expected);
    }
}

/// Parameter problem, with its pointer, is among [`errors`]; timestamps among [`exchanges`].
#[test]
fn rfc5508_10b_10c_and_11_other_messages_are_dropped_and_counted() {
    let mut world = world("[pool]\naddresses = \"198.51.100.20\"\n");
    let about = inside(CLIENT, SERVER).udp(20_000, 53, b"");
    let sent = through(&mut world, INSIDE, &about);
    let types: Vec<u8> = (0..=255)
        .filter(|icmp_type| ![0, 3, 8, 11, 12, 13, 14].contains(icmp_type))
        .collect();
    for &icmp_type in &types {
        let out = inside(CLIENT, SERVER).icmp_error(icmp_type, 0, &about, 576);
        silence(&mut world, INSIDE, &out);
        let back = outside(BEYOND, [198, 51, 100, 20].into());
        silence(
            &mut world,
            OUTSIDE,
            &back.icmp_error(icmp_type, 0, &sent, 576),
        );
    }
    let dropped: Vec<_> = world.snapshot().drops().collect();
    assert_eq!(
        dropped,
        [(DropReason::UnsupportedIcmp, 2 * types.len() as u64)]
    );
    assert_eq!(world.snapshot().made, 0);
}

#[test]
fn rfc5508_10d_errors_copy_the_ds_field() {
    for dscp_ecn in [0x00, 0x03, 0xB8, 0xBB, 0xFF] {
        let mut world = world("[icmp]\non_refusal = \"admin-prohibited\"\n");
        let marked = Envelope {
            dscp_ecn,
            ..inside(CLIENT, SERVER)
        };
        let expiring = Envelope {
            ttl: 1,
            ..marked.clone()
        };
        let told = answer(&mut world, INSIDE, &expiring.udp(20_000, 53, b""));
        assert_eq!(told[15], dscp_ecn & 0xFC);
        world.set_mtu(OUTSIDE, 576);
        let told = answer(
            &mut world,
            INSIDE,
            &with_df(marked).udp(20_000, 53, &[1; 600]),
        );
        assert_eq!((icmp_type(&told), told[15]), ([3, 4], dscp_ecn & 0xFC));
    }
}

/// RFC 1812 section 4.3.2.7, each case on frames that would be answered otherwise.
#[test]
fn rfc5508_10e_silence_where_an_answer_is_forbidden() {
    let expiring = || Envelope {
        ttl: 1,
        ..inside(CLIENT, SERVER)
    };
    let udp = |envelope: Envelope| envelope.udp(20_000, 53, b"question");
    let group = |mac| Envelope {
        destination_mac: mac,
        ..expiring()
    };
    let from = |addr: [u8; 4]| Envelope {
        source: addr.into(),
        ..expiring()
    };
    let to = |addr: [u8; 4]| Envelope {
        destination: addr.into(),
        ..expiring()
    };
    let later = Envelope {
        flags_offset: 8,
        ..expiring()
    };
    let about = Envelope::new(SERVER, CLIENT).udp(53, 20_000, b"");
    let silent = [
        ("an ICMP error", expiring().icmp_error(3, 3, &about, 576)),
        ("a later fragment", later.frame(17, &[1; 16])),
        ("broadcast of the link", udp(group([0xFF; 6]))),
        ("multicast of the link", udp(group([1, 0, 0x5E, 0, 0, 1]))),
        ("to all hosts", udp(to([255, 255, 255, 255]))),
        ("to a group", udp(to([224, 0, 0, 5]))),
        ("to all hosts of a network", udp(to([198, 51, 100, 255]))),
        ("to a network", udp(to([198, 51, 100, 0]))),
        ("from 0/8", udp(from([0, 0, 0, 0]))),
        ("from 127/8", udp(from([127, 0, 0, 1]))),
        ("from a group", udp(from([224, 0, 0, 5]))),
        ("from class E", udp(from([240, 0, 0, 1]))),
        ("from all hosts", udp(from([255, 255, 255, 255]))),
        ("from all hosts of a network", udp(from([10, 77, 0, 255]))),
        ("from a network", udp(from([10, 77, 0, 0]))),
    ];
    for (what, frame) in silent {
        let mut world = world("");
        world.inject(INSIDE, &udp(inside(CLIENT, SERVER)));
        pass(&mut world, INSIDE, &frame);
        world.take_sent(INSIDE);
        assert_eq!(world.snapshot().made, 0, "{what}");
        assert_eq!(
            world.snapshot().drops().map(|drop| drop.1).sum::<u64>(),
            1,
            "{what}"
        );
    }
    answer(&mut world(""), INSIDE, &udp(expiring()));
}

#[test]
fn rfc5508_10f_a_flood_is_answered_at_the_configured_rate() {
    let mut world = world("[icmp]\nerrors_per_second = 100\n");
    let expiring = Envelope {
        ttl: 1,
        ..inside(CLIENT, SERVER)
    }
    .udp(20_000, 33_434, b"");
    let mut answered = 0;
    for _ in 0..10_000 {
        answered += pass(&mut world, INSIDE, &expiring)[INSIDE].len();
        world.advance_ms(1);
    }
    // Ten seconds and a full bucket at the start; a side's share of one kind is a quarter.
    assert!((250..=275).contains(&answered), "{answered}");
    let snapshot = world.snapshot();
    assert_eq!(snapshot.errors_suppressed, 10_000 - answered as u64);
}
