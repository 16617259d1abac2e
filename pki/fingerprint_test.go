package pki_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/balsa-run/balsa/pki"
)

func TestFingerprintsNeedTheKeyAndOutliveARotation(t *testing.T) {
	first := pki.NewSealKey(time.Unix(0, 0))
	ring := pki.NewKeyring(first)
	want := ring.Fingerprint([]byte("sesame"))
	if !bytes.Equal(want, ring.Fingerprint([]byte("sesame"))) || bytes.Equal(want, ring.Fingerprint([]byte("sesamf"))) {
		t.Error("equal contents differ, or different ones do not")
	}
	if bytes.Equal(want, pki.NewKeyring(pki.NewSealKey(time.Unix(0, 0))).Fingerprint([]byte("sesame"))) {
		t.Error("another cluster's keyring gives the same fingerprint")
	}
	second := pki.NewSealKey(time.Unix(1, 0))
	ring, err := ring.Add(second)
	if err != nil {
		t.Fatal(err)
	}
	if ring, err = ring.Promote(second.ID); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, ring.Fingerprint([]byte("sesame"))) {
		t.Error("a promoted key changes fingerprints")
	}
}
