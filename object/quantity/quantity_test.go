package quantity_test

import (
	"errors"
	"math/big"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/balsa-run/balsa/object/quantity"
)

func TestScaled(t *testing.T) {
	for _, c := range []struct {
		text         string
		units, milli int64
	}{
		{"0", 0, 0}, {"1", 1, 1000}, {"500m", 1, 500}, {"0.5", 1, 500}, {".5", 1, 500}, {"1.", 1, 1000}, {"100u", 1, 1}, {"1n", 1, 1},
		{"1500m", 2, 1500}, {"2e3", 2000, 2_000_000}, {"2E3", 2000, 2_000_000}, {"12e-1", 2, 1200}, {"1k", 1000, 1_000_000}, {"64Mi", 64 << 20, 64 << 20 * 1000},
		{"1.5Gi", 3 << 29, 3 << 29 * 1000}, {"1Ki", 1024, 1_024_000}, {"+3", 3, 3000}, {"-1", -1, -1000}, {"-500m", 0, -500}, {"-1500m", -1, -1500},
		{"0.1Ki", 103, 102_400}, {"1.000000000000000000000", 1, 1000}, {"00012", 12, 12_000}, {"9223372036854775m", 9223372036855, 9223372036854775},
		{"0E", 0, 0}, {"1T", 1e12, 1e15}, {"1P", 1e15, 1e18}, {"0.0000000001", 1, 1},
	} {
		q, err := quantity.Parse(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if units, err := q.Units(); err != nil || units != c.units {
			t.Errorf("%s: %d units, %v, want %d", c.text, units, err, c.units)
		}
		if milli, err := q.Milli(); err != nil || milli != c.milli {
			t.Errorf("%s: %d milli, %v, want %d", c.text, milli, err, c.milli)
		}
	}
}

func TestRefused(t *testing.T) {
	for text, want := range map[string]error{
		"": quantity.ErrSyntax, "m": quantity.ErrSyntax, ".": quantity.ErrSyntax, "1.2.3": quantity.ErrSyntax, "1 Mi": quantity.ErrSyntax, "1mi": quantity.ErrSyntax,
		"1K": quantity.ErrSyntax, "0x10": quantity.ErrSyntax, "1_000": quantity.ErrSyntax, "1e": quantity.ErrSyntax, "1e1.5": quantity.ErrSyntax, "--1": quantity.ErrSyntax,
		"1MiB": quantity.ErrSyntax, "1ki": quantity.ErrSyntax, "five": quantity.ErrSyntax, "1e3k": quantity.ErrSyntax, strings.Repeat("1", 65): quantity.ErrSyntax,
		"9223372036854775808": quantity.ErrRange, "8Ei": quantity.ErrRange, "10E": quantity.ErrRange, "1e19": quantity.ErrRange, "1e99999999999999999999": quantity.ErrRange,
		"99999999999999999999": quantity.ErrRange, "1e-40": quantity.ErrRange,
	} {
		if _, err := quantity.Parse(text); !errors.Is(err, want) {
			t.Errorf("%q: got %v, want %v", text, err, want)
		}
	}
}

func TestMilliOverflow(t *testing.T) {
	for _, text := range []string{"7Ei", "9223372036854775807"} {
		q, err := quantity.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := q.Milli(); !errors.Is(err, quantity.ErrRange) {
			t.Errorf("%s: got %d, %v, want out of range", text, n, err)
		}
	}
}

// dumb reads a quantity with rational numbers of any size.
func dumb(text string) *big.Rat {
	m := regexp.MustCompile(`^([+-]?)([0-9]*\.?[0-9]*)(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?[0-9]+)?$`).FindStringSubmatch(text)
	if m == nil || strings.Trim(m[2], ".") == "" {
		return nil
	}
	r, ok := new(big.Rat).SetString("0" + m[2] + "0"[:strings.Count(m[2], ".")])
	if !ok {
		return nil
	}
	if m[1] == "-" {
		r.Neg(r)
	}
	suffixes := map[string]string{
		"": "1", "n": "1e-9", "u": "1e-6", "m": "1e-3", "k": "1e3", "M": "1e6", "G": "1e9", "T": "1e12", "P": "1e15", "E": "1e18",
		"Ki": "1024", "Mi": "1048576", "Gi": "1073741824", "Ti": "1099511627776", "Pi": "1125899906842624", "Ei": "1152921504606846976",
	}
	factor, isSuffix := suffixes[m[3]]
	if !isSuffix {
		factor = "1" + m[3]
	}
	f, ok := new(big.Rat).SetString(factor)
	if !ok {
		return nil
	}
	return r.Mul(r, f)
}

// ceil rounds up to a multiple of 1/scale and returns it in those.
func ceil(r *big.Rat, scale int64) *big.Int {
	n := new(big.Rat).Mul(r, big.NewRat(scale, 1))
	q, rest := new(big.Int).DivMod(n.Num(), n.Denom(), new(big.Int))
	if rest.Sign() != 0 {
		q.Add(q, big.NewInt(1))
	}
	return q
}

func TestAgainstRationals(t *testing.T) {
	text := rapid.Custom(func(t *rapid.T) string {
		return rapid.StringMatching(`[+-]?[0-9]{0,20}(\.[0-9]{0,12})?`).Draw(t, "number") +
			rapid.SampledFrom([]string{"", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "e3", "E-3", "e18", "e-12"}).Draw(t, "suffix")
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := text.Draw(t, "a"), text.Draw(t, "b")
		x, y := checkOne(t, a), checkOne(t, b)
		if x == nil || y == nil {
			return
		}
		want := ceilNano(a).Cmp(ceilNano(b))
		if got := x.Compare(*y); got != want {
			t.Fatalf("%s against %s: %d, want %d", a, b, got, want)
		}
	})
}

// ceilNano is a quantity in nano-units, rounded away from zero.
func ceilNano(text string) *big.Int {
	r := dumb(text)
	n := ceil(new(big.Rat).Abs(r), 1e9)
	if r.Sign() < 0 {
		n.Neg(n)
	}
	return n
}

func checkOne(t interface{ Fatalf(string, ...any) }, text string) *quantity.Quantity {
	q, err := quantity.Parse(text)
	r := dumb(text)
	if r == nil && err == nil || r != nil && errors.Is(err, quantity.ErrSyntax) && len(text) <= 64 {
		t.Fatalf("%q: %v, but the dumb twin says %v", text, err, r)
	}
	if err != nil {
		return nil
	}
	exact := new(big.Rat).SetFrac(ceilNano(text), big.NewInt(1e9))
	if got, err := q.Milli(); err == nil && ceil(exact, 1000).Cmp(big.NewInt(got)) != 0 {
		t.Fatalf("%q: %d milli, want %s", text, got, ceil(exact, 1000))
	}
	if got, err := q.Units(); err != nil || ceil(exact, 1).Cmp(big.NewInt(got)) != 0 {
		if ceil(exact, 1).IsInt64() {
			t.Fatalf("%q: %d units, %v, want %s", text, got, err, ceil(exact, 1))
		}
	}
	return &q
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"1", "500m", "64Mi", "-1.5Gi", "1e3", "8Ei", ".5", "1e-9", "9223372036854775807", "0.0000000001n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if strings.ContainsAny(text, "eE") && len(text) > 12 {
			return // the twin would build huge numbers
		}
		if i := strings.IndexAny(text, "eE"); i >= 0 {
			if n, err := strconv.Atoi(text[i+1:]); err == nil && (n > 100 || n < -100) {
				return
			}
		}
		checkOne(t, text)
	})
}

func TestFormat(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 1: "1m", 1500: "1500m", 2000: "2", -500: "-500m"} {
		if got := quantity.FormatMilli(n); got != want {
			t.Errorf("FormatMilli(%d) = %s, want %s", n, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0", 1000: "1000", 1024: "1Ki", 64 << 20: "64Mi", 3 << 29: "1536Mi", 1 << 60: "1Ei", -2048: "-2Ki"} {
		if got := quantity.FormatBytes(n); got != want {
			t.Errorf("FormatBytes(%d) = %s, want %s", n, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(-1<<50, 1<<50).Draw(t, "n")
		bytes, err := quantity.Parse(quantity.FormatBytes(n))
		if got, _ := bytes.Units(); err != nil || got != n {
			t.Fatalf("FormatBytes(%d) reads as %d, %v", n, got, err)
		}
		milli, err := quantity.Parse(quantity.FormatMilli(n))
		if got, _ := milli.Milli(); err != nil || got != n {
			t.Fatalf("FormatMilli(%d) reads as %d, %v", n, got, err)
		}
	})
}
