package memlog

// unsyncedEntries are lost with the power when mutate.NoFsync is planted.
const unsyncedEntries = 6

// forgetTail takes the last entries of a disk that nobody uses yet. Nothing but the
// planted bug calls it.
func (d *Disk) forgetTail(entries int) {
	for ; entries > 0 && d.high > d.low; entries-- {
		delete(d.log, d.high)
		d.high--
	}
}
