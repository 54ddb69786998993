//! How what is declared here is written into the state of a VM.

use crate::{EventInj, Exception, Gpa, GuestIndexed, Hva, NpfCode, SegmentAttr};
use state::{Reader, Refused, State, Value, Writer};

::state::state! {
    wrap EventInj
    wrap Gpa
    wrap Hva
    wrap NpfCode
    wrap SegmentAttr
    value Exception { vector, error_code, payload }
}

impl<A: State> State for GuestIndexed<A> {
    fn save(&self, w: &mut Writer) {
        self.table().save(w);
    }
    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), Refused> {
        self.table_mut().load(r)
    }
}

impl<A: Value> Value for GuestIndexed<A> {
    fn read(r: &mut Reader<'_>) -> Result<Self, Refused> {
        r.value().map(Self::new)
    }
}
