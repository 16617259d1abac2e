package bench

import (
	"archive/tar"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	prng "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/balsa-run/balsa/chaos/load"
	"github.com/balsa-run/balsa/chaos/stage"
	"github.com/balsa-run/balsa/chaos/world/host"
)

const (
	pullLayers     = 4
	pullLayerBytes = 50_000_000
	registryPort   = "5000"
	certificateFor = 24 * time.Hour
)

// pulls brings an image from a registry to a node and unpacks it: Balsa's agent,
// crane with tar, and containerd, in turns, each from nothing.
func (g *PodGround) pulls(rounds int) []Measure {
	t := newTrial(func(ctx context.Context, t *takings) error {
		if g.Peers.Missing != nil {
			return g.Peers.Missing // crane fills the registry
		}
		return g.cluster(ctx, 1, 1, func(s *stage.Stage) error {
			r, err := g.openRegistry(ctx, s, rounds)
			if err != nil {
				return err
			}
			peer, peerErr := g.startContainerd(ctx, s)
			for round := range rounds {
				image := r.image(round)
				err := inTurn(round,
					func() error { return g.balsaPull(ctx, s, t, image) },
					func() error { return g.cranePull(ctx, s, t, image, round) },
					func() error {
						if peerErr == nil {
							peerErr = peerPull(ctx, t, peer, image)
						}
						return nil
					})
				if err != nil {
					return err
				}
			}
			if peerErr != nil {
				t.failed["containerd-pull"] = peerErr
			}
			t.compare("pull", "crane-tar-pull")
			t.compare("pull", "containerd-pull")
			return nil
		})
	})
	what := fmt.Sprintf("an image of %d MB in %d layers of many files, which compress to about a third, from a registry (distribution, HTTPS) on the next host", pullLayers*pullLayerBytes/1_000_000, pullLayers)
	seconds := Unit{Name: "s", Decimals: 2}
	return []Measure{
		part{t, "pull", "How long from sending Create of a pod until a watch shows it Running, when the agent has to bring and unpack " + what + "? Every digest is checked; starting the pod is included; the sync that makes the image safe against a crash of the machine comes later and is not in it. Each round has another image.", seconds, nil},
		part{t, "crane-tar-pull", "How long does `crane export IMAGE - | tar -x` take for the same image? Nothing of it is synced to the disk.", seconds, nil},
		part{t, "containerd-pull", "How long does containerd's client library take to pull and unpack the same image into the overlay snapshotter?", seconds, nil},
	}
}

func (g *PodGround) balsaPull(ctx context.Context, s *stage.Stage, t *takings, image string) error {
	report := load.BatchReport{}
	err := g.play(ctx, s.Operator, &report, g.Client, "-config", s.Admin(), "-cold", "-image", image, "-node", s.Agents[0].Host.Name, "pods")
	if err != nil {
		return err
	}
	for _, batch := range report.Batches {
		t.add("pull", batch.AllMS/1000)
	}
	return nil
}

func peerPull(ctx context.Context, t *takings, c *containerd, image string) error {
	report, err := c.play(ctx, "pull", image)
	for _, ms := range report.TookMS {
		t.add("containerd-pull", ms/1000)
	}
	return err
}

// cranePull fails when either half does: tar takes no stream that breaks off. It
// ends with a sync that does not count, so that the next one's turn
// does not wait for this one's disk.
func (g *PodGround) cranePull(ctx context.Context, s *stage.Stage, t *takings, image string, round int) error {
	h := s.Agents[0].Host
	dir := filepath.Join(h.Dir, fmt.Sprintf("crane-%d", round))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	began := time.Now()
	if _, err := h.Run(ctx, "sh", "-c", `"$0" export "$1" - | tar -x -f - -C "$2"`, g.Peers.program("crane"), image, dir); err != nil {
		return err
	}
	unpacked := time.Since(began)
	if _, err := h.Run(ctx, "sync", "-f", dir); err != nil {
		return err
	}
	t.add("crane-tar-pull", unpacked.Seconds())
	t.note("crane-tar-pull", "with a sync of the file system afterwards: %.2f s", time.Since(began).Seconds())
	return os.RemoveAll(dir)
}

// registry serves the images of all rounds.
type imageRegistry struct{ address string }

func (r imageRegistry) image(round int) string { return fmt.Sprintf("%s/bench:%d", r.address, round) }

const registryConfig = `version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %q}}
http: {addr: %q, tls: {certificate: %q, key: %q}}
`

// openRegistry fills a registry on a host of its own.
func (g *PodGround) openRegistry(ctx context.Context, s *stage.Stage, rounds int) (imageRegistry, error) {
	r := imageRegistry{}
	h, err := s.Lab.AddHost("reg")
	if err != nil {
		return r, err
	}
	r.address = net.JoinHostPort(h.Address, registryPort)
	key := filepath.Join(h.Dir, "key.pem")
	if err := writeCertificate(g.Authority(), key, net.ParseIP(h.Address)); err != nil {
		return r, err
	}
	config := filepath.Join(h.Dir, "registry.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, registryConfig, filepath.Join(h.Dir, "store"), r.address, g.Authority(), key), 0o644); err != nil {
		return r, err
	}
	process, err := h.Start("registry", g.Peers.program("registry"), config)
	if err != nil {
		return r, err
	}
	base := r.address + "/base:1"
	err = s.Until(ctx, rolloutFor, "the registry to take an image", func(ctx context.Context) error {
		if !process.Running() {
			return errors.New("it has ended: " + process.Tail(5))
		}
		_, err := h.Run(ctx, g.Peers.program("crane"), "push", g.Programs.Echo, base)
		return err
	})
	for round := range rounds {
		if err == nil {
			err = g.pushImage(ctx, h, base, r.image(round), uint64(round))
		}
	}
	return r, err
}

// Authority is the certificate of the registry, which whoever pulls has to trust:
// set SSL_CERT_FILE to it before anything is started.
func (g *PodGround) Authority() string { return filepath.Join(g.Dir, "registry.pem") }

func (g *PodGround) pushImage(ctx context.Context, h *host.Host, base, image string, seed uint64) error {
	args := []string{"append", "-b", base, "-t", image}
	for i := range uint64(pullLayers) {
		layer := filepath.Join(h.Dir, fmt.Sprintf("layer-%d.tar", i))
		if err := writeLayer(layer, seed*pullLayers+i+1); err != nil {
			return err
		}
		args = append(args, "-f", layer)
	}
	_, err := h.Run(ctx, g.Peers.program("crane"), args...)
	return err
}

// writeLayer makes files of 256 bytes to half a megabyte, of words that repeat.
func writeLayer(path string, seed uint64) (err error) {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	random := prng.New(prng.NewPCG(seed, seed))
	words := make([]string, 4096)
	for i := range words {
		words[i] = fmt.Sprintf("%x", random.Uint64()>>random.IntN(40))
	}
	out := tar.NewWriter(file)
	for n, total := 0, 0; total < pullLayerBytes; n++ {
		size := 1 << (8 + random.IntN(12))
		content := make([]byte, 0, size+16)
		for len(content) < size {
			content = append(content, words[random.IntN(len(words))]...)
		}
		header := &tar.Header{Name: fmt.Sprintf("usr/share/d%d/e%d/f%d", seed, n/40, n), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content)), ModTime: time.Unix(0, 0)}
		if err := out.WriteHeader(header); err != nil {
			return err
		}
		if _, err := out.Write(content); err != nil {
			return err
		}
		total += len(content)
	}
	return out.Close()
}

// writeCertificate makes one that vouches for itself.
func writeCertificate(certificate, key string, address net.IP) error {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "bench registry"}, IPAddresses: []net.IP{address},
		NotBefore: now.Add(-certificateFor), NotAfter: now.Add(certificateFor), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return err
	}
	return errors.Join(writePEM(certificate, "CERTIFICATE", der, 0o644), writePEM(key, "PRIVATE KEY", secret, 0o600))
}

func writePEM(path, kind string, content []byte, mode os.FileMode) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content}), mode)
}
