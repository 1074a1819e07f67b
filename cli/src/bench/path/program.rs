//! The bench's BPF programs (`bpf/path.bpf.c`): loading, maps, attaching.

use aya::maps::{Array, Map, MapData, PerCpuArray, XskMap};
use aya::programs::tc::qdisc_add_clsact;
use aya::programs::{ProgramError, SchedClassifier, TcAttachType, Xdp};
use aya::{Ebpf, include_bytes_aligned};

use crate::lab::{LabError, Namespace};

static OBJECT: &[u8] = include_bytes_aligned!("bpf/path.bpf.o");

/// The loaded object with maps of its own. What is attached goes with it.
#[derive(Debug)]
pub struct Object {
    ebpf: Ebpf,
}

impl Object {
    /// Loads the object, and none of its programs yet.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn load() -> Result<Object, LabError> {
        let ebpf = Ebpf::load(OBJECT).map_err(LabError::bpf("loading the bench's programs"))?;
        Ok(Object { ebpf })
    }

    /// Takes an array out of the object.
    ///
    /// # Errors
    /// There is none of that name and value.
    pub fn array<V: aya::Pod>(&mut self, name: &str) -> Result<Array<MapData, V>, LabError> {
        self.map(name)?.try_into().map_err(LabError::bpf(name))
    }

    /// Takes a counter for each CPU out of the object.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn counters(&mut self, name: &str) -> Result<PerCpuArray<MapData, u64>, LabError> {
        self.map(name)?.try_into().map_err(LabError::bpf(name))
    }

    /// Takes the map of AF_XDP sockets out of the object.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn sockets(&mut self, name: &str) -> Result<XskMap<MapData>, LabError> {
        self.map(name)?.try_into().map_err(LabError::bpf(name))
    }

    fn map(&mut self, name: &str) -> Result<Map, LabError> {
        self.ebpf.take_map(name).ok_or_else(|| missing(name))
    }

    /// An XDP program, loaded into the kernel.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn load_xdp(&mut self, name: &str) -> Result<&mut Xdp, LabError> {
        let program = self.ebpf.program_mut(name).ok_or_else(|| missing(name))?;
        let program: &mut Xdp = program.try_into().map_err(LabError::bpf(name))?;
        program
            .load()
            .map_err(LabError::bpf(format!("loading {name}")))?;
        Ok(program)
    }

    /// An XDP program that was loaded.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn xdp(&self, name: &str) -> Result<&Xdp, LabError> {
        let program = self.ebpf.program(name).ok_or_else(|| missing(name))?;
        program.try_into().map_err(LabError::bpf(name))
    }

    /// Loads a classifier and attaches it to what an interface receives.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn attach_classifier(
        &mut self,
        name: &str,
        namespace: &Namespace,
        link: &str,
    ) -> Result<(), LabError> {
        let program = self.ebpf.program_mut(name).ok_or_else(|| missing(name))?;
        let program: &mut SchedClassifier = program.try_into().map_err(LabError::bpf(name))?;
        program
            .load()
            .map_err(LabError::bpf(format!("loading {name}")))?;
        let attached = namespace.run(|| {
            let attach = |program: &mut SchedClassifier| -> Result<(), ProgramError> {
                program.attach(link, TcAttachType::Ingress).map(drop)
            };
            // Before Linux 6.6 there must be a queueing discipline to attach to.
            Ok(attach(program).or_else(|_| {
                qdisc_add_clsact(link).ok();
                attach(program)
            }))
        });
        let what = format!("attaching {name} to {link} in {}", namespace.name());
        attached
            .map_err(LabError::system(what.clone()))?
            .map_err(LabError::bpf(what))
    }
}

fn missing(name: &str) -> LabError {
    LabError::Bpf {
        what: format!("looking for {name} in the bench's programs"),
        why: "it is not there".to_owned(),
    }
}
