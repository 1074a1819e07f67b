//! A batch on its way through step 4: all frames are looked at before the first is judged, so that the
//! tables' cache lines arrive meanwhile.

use conntrack::{Random, Time};

use crate::gateway::{Gateway, Prepared, Verdict};
use crate::shortcut::Glance;
use crate::stats::WorkerStats;

/// What was seen of a batch's frames, in their order.
#[derive(Debug, Default)]
pub struct Batch {
    glances: Vec<Option<Glance>>,
    /// Of the frames that are no common ones, with their numbers, the last first.
    prepared: Vec<(usize, Prepared)>,
    /// Frames that took the shortcut, ever.
    shortcuts: u64,
    /// Every frame goes the whole route.
    whole_route: bool,
}

impl Batch {
    /// Room for so many frames.
    pub fn with_capacity(frames: usize) -> Batch {
        Batch {
            glances: Vec::with_capacity(frames),
            prepared: Vec::with_capacity(frames),
            shortcuts: 0,
            whole_route: false,
        }
    }

    /// How many frames took the shortcut, ever.
    pub fn shortcuts(&self) -> u64 {
        self.shortcuts
    }

    /// Takes no shortcut from now on, to compare.
    pub fn set_whole_route(&mut self) {
        self.whole_route = true;
    }

    /// Looks at a batch of frames, and asks for what their flows need of the tables.
    #[inline(always)]
    pub fn look<'a, R: Random>(
        &mut self,
        gateway: &Gateway<R>,
        frames: impl Iterator<Item = &'a [u8]>,
    ) {
        self.glances.clear();
        self.prepared.clear();
        for (place, frame) in frames.enumerate() {
            let glance = match self.whole_route {
                false => gateway.glance(frame),
                true => None,
            };
            if glance.is_none() {
                self.prepared.push((place, gateway.prepare(frame)));
            }
            self.glances.push(glance);
        }
        for glance in self.glances.iter_mut().flatten() {
            gateway.look_ahead(glance);
        }
        for (_, prepared) in &self.prepared {
            gateway.prefetch(prepared);
        }
        // So that they are taken in the order of the frames.
        self.prepared.reverse();
    }

    /// Sends frame number `place` by the shortcut: its egress interface, and its bytes without
    /// padding. None, and the frame as it came: it goes the whole route.
    #[inline(always)]
    pub fn shortcut<R: Random>(
        &mut self,
        gateway: &Gateway<R>,
        place: usize,
        frame: &mut [u8],
        ingress: u8,
        now: Time,
    ) -> Option<(u8, usize)> {
        let glance = self.glances.get(place)?.as_ref()?;
        let interface = gateway.shortcut(frame, glance, ingress, now)?;
        self.shortcuts += 1;
        Some((interface, glance.frame_len()))
    }

    /// Steps 4 to 8 for frame number `place`, by whichever route. Once a frame, in their order.
    #[inline(always)]
    pub fn judge<R: Random>(
        &mut self,
        gateway: &mut Gateway<R>,
        place: usize,
        frame: &mut [u8],
        ingress: u8,
        now: Time,
        stats: &WorkerStats,
    ) -> Verdict {
        if let Some((interface, _)) = self.shortcut(gateway, place, frame, ingress, now) {
            return Verdict::Transmit {
                interface,
                split_mtu: None,
            };
        }
        let prepared = self.prepared(gateway, place, frame);
        gateway.process(frame, &prepared, ingress, now, stats)
    }

    /// Step 4 of the whole route for frame number `place`, which the shortcut did not take. Once a
    /// frame, in their order.
    pub fn prepared<R: Random>(
        &mut self,
        gateway: &Gateway<R>,
        place: usize,
        frame: &[u8],
    ) -> Prepared {
        let seen = match self.glances.get(place) {
            Some(Some(glance)) => glance.prepared(frame),
            Some(None) => {
                let next = self.prepared.pop_if(|(of, _)| *of <= place);
                next.filter(|(of, _)| *of == place)
                    .map(|(_, prepared)| prepared)
            }
            None => None,
        };
        seen.unwrap_or_else(|| gateway.prepare(frame))
    }
}
