//! The object file: sections, symbols, relocations, and instructions at a place.

use anyhow::{Context, Result, ensure};
use iced_x86::{Decoder, DecoderOptions, Instruction};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionFlags, SectionIndex, SymbolSection};
use std::collections::{BTreeMap, HashMap};

/// An offset in a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Index of the section.
    pub section: usize,
    /// Offset in bytes.
    pub offset: u64,
}

impl Place {
    /// `by` bytes further on.
    pub fn after(self, by: u64) -> Self {
        Self { offset: self.offset.wrapping_add(by), ..self }
    }
}

/// What a relocation, or a branch, refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Something in the object.
    Here(Place),
    /// A symbol of somebody else's.
    Extern(String),
}

struct Section {
    name: String,
    /// It holds code.
    executable: bool,
    data: Vec<u8>,
}

struct Reloc {
    target: Target,
    /// Added to the symbol.
    addend: i64,
}

/// The object.
pub struct Module {
    sections: HashMap<usize, Section>,
    symbols: HashMap<String, Place>,
    /// Names of places that have one; functions win over labels.
    names: BTreeMap<Place, (bool, String)>,
    relocs: HashMap<Place, Reloc>,
}

/// An instruction and what its operands refer to.
pub struct Decoded {
    /// As iced decodes it, at an address equal to its offset.
    pub insn: Instruction,
    /// The target of a direct branch.
    pub branch: Option<Target>,
    /// The symbol of a RIP-relative operand and the offset from it.
    pub memory: Option<(Target, i64)>,
}

impl Module {
    /// Reads an ELF relocatable for x86-64.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let file = object::File::parse(bytes).context("no ELF object")?;
        ensure!(file.architecture() == object::Architecture::X86_64, "not for x86-64");
        let mut sections = HashMap::new();
        for s in file.sections() {
            let data = s.data().unwrap_or_default().to_vec();
            let SectionFlags::Elf { sh_flags, .. } = s.flags() else { continue };
            let executable = sh_flags.0 & object::elf::SHF_EXECINSTR.0 != 0;
            sections.insert(s.index().0, Section { name: s.name().unwrap_or_default().to_owned(), executable, data });
        }
        let (mut symbols, mut names) = (HashMap::new(), BTreeMap::new());
        for s in file.symbols() {
            let (SymbolSection::Section(SectionIndex(section)), Ok(name)) = (s.section(), s.name()) else { continue };
            if name.is_empty() || s.kind() == object::SymbolKind::Section {
                continue;
            }
            let place = Place { section, offset: s.address() };
            symbols.entry(name.to_owned()).or_insert(place);
            let function = s.kind() == object::SymbolKind::Text && s.size() > 0;
            let known = names.entry(place).or_insert((function, name.to_owned()));
            if function && !known.0 {
                *known = (true, name.to_owned());
            }
        }
        let mut relocs = HashMap::new();
        for s in file.sections() {
            for (offset, r) in s.relocations() {
                let RelocationTarget::Symbol(index) = r.target() else { continue };
                let symbol = file.symbol_by_index(index)?;
                let target = match symbol.section() {
                    SymbolSection::Section(SectionIndex(section)) => {
                        Target::Here(Place { section, offset: symbol.address() })
                    }
                    _ => Target::Extern(symbol.name().unwrap_or_default().to_owned()),
                };
                relocs.insert(Place { section: s.index().0, offset }, Reloc { target, addend: r.addend() });
            }
        }
        Ok(Self { sections, symbols, names, relocs })
    }

    /// Where a symbol is defined.
    pub fn symbol(&self, name: &str) -> Option<Place> {
        self.symbols.get(name).copied()
    }

    /// The sections of this name: index and contents.
    pub fn sections_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (usize, &'a [u8])> + 'a {
        self.sections.iter().filter(move |(_, s)| s.name == name).map(|(n, s)| (*n, &s.data[..]))
    }

    /// Sections with code: where each begins, and its length in bytes.
    pub fn code(&self) -> impl Iterator<Item = (Place, u64)> + '_ {
        let code = self.sections.iter().filter(|(_, s)| s.executable);
        code.map(|(section, s)| (Place { section: *section, offset: 0 }, s.data.len() as u64))
    }

    /// The name of a section.
    pub fn section_name(&self, section: usize) -> &str {
        self.sections.get(&section).map_or("", |s| &s.name)
    }

    /// Does a function begin here?
    pub fn is_function(&self, place: Place) -> bool {
        matches!(self.names.get(&place), Some((true, _)))
    }

    /// Functions in order, with their places.
    pub fn functions(&self) -> impl Iterator<Item = (Place, &str)> {
        self.names.iter().filter(|(_, (function, _))| *function).map(|(p, (_, name))| (*p, name.as_str()))
    }

    /// What the pointer at `place` refers to; `size` is its own size in bytes, which a relative one's addend makes up for
    /// only if it is relative to itself.
    pub fn pointer(&self, place: Place) -> Option<Target> {
        let r = self.relocs.get(&place)?;
        Some(match &r.target {
            Target::Here(p) => Target::Here(p.after(r.addend as u64)),
            other => other.clone(),
        })
    }

    /// The function (or label) that `place` is in, and how far.
    pub fn describe(&self, place: Place) -> String {
        let start = Place { offset: 0, ..place };
        match self.names.range(start..=place).rev().find(|(_, (function, _))| *function) {
            Some((at, (_, name))) => match place.offset - at.offset {
                0 => name.clone(),
                n => format!("{name}+{n:#x}"),
            },
            None => format!("{}+{:#x}", self.section_name(place.section), place.offset),
        }
    }

    /// The name of the symbol at exactly this place.
    pub fn name_at(&self, place: Place) -> Option<&str> {
        self.names.get(&place).map(|(_, name)| name.as_str())
    }

    /// The nearest symbol at or before `place`, and how far it is.
    pub fn nearest(&self, place: Place) -> (String, i64) {
        let start = Place { offset: 0, ..place };
        match self.names.range(start..=place).next_back() {
            Some((at, (_, name))) => (name.clone(), (place.offset - at.offset) as i64),
            None => (self.section_name(place.section).to_owned(), place.offset as i64),
        }
    }

    /// The instruction at `place`. Errors: there is none.
    pub fn decode(&self, place: Place) -> Result<Decoded> {
        let data = self.sections.get(&place.section).and_then(|s| s.data.get(place.offset as usize..)).unwrap_or(&[]);
        let mut decoder = Decoder::with_ip(64, data, place.offset, DecoderOptions::NONE);
        let insn = decoder.decode();
        ensure!(!insn.is_invalid(), "{}: no instruction", self.describe(place));
        let offsets = decoder.get_constant_offsets(&insn);
        let end = place.after(insn.len() as u64);
        let reloc = |at: usize| {
            let at = place.after(at as u64);
            let r = self.relocs.get(&at)?;
            // PC-relative to the end of the instruction.
            Some((r, r.addend + (end.offset - at.offset) as i64))
        };
        let branch = (insn.is_jcc_short_or_near() || insn.is_jmp_short_or_near() || insn.is_call_near()).then(|| {
            match reloc(offsets.immediate_offset()) {
                Some((Reloc { target: Target::Here(p), .. }, by)) => Target::Here(p.after(by as u64)),
                Some((Reloc { target, .. }, _)) => target.clone(),
                None => Target::Here(Place { offset: insn.near_branch_target(), ..place }),
            }
        });
        let memory = match insn.is_ip_rel_memory_operand() {
            true => reloc(offsets.displacement_offset()).map(|(r, by)| (r.target.clone(), by)),
            false => None,
        };
        Ok(Decoded { insn, branch, memory })
    }
}
