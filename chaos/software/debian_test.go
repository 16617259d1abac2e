package software

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// needless are packages that others depend on for their installation, for tools
// beside the program, or for what a container has no use for. What only they
// depend on is left out with them.
func needless() []string {
	return []string{
		"adduser", "debconf", "debianutils", "dpkg", "init-system-helpers", "install-info", "iproute2", "locales", "lsb-base", "mawk",
		"media-types", "passwd", "perl", "perl-base", "postgresql-client-common", "postgresql-common", "python3", "python3-protobuf", "readline-common",
		"ssl-cert", "sysvinit-utils", "tzdata-legacy", "ucf",
	}
}

// isNeedless also knows packages whose names carry a version.
func isNeedless(name string) bool {
	return slices.Contains(needless(), name) || strings.HasPrefix(name, "libllvm") || strings.HasPrefix(name, "gcc-")
}

// apt runs one of apt's programs, without the user that it would drop to: that
// one may not write to the cache.
func apt(ctx context.Context, dir, program string, args ...string) (string, error) {
	command := exec.CommandContext(ctx, program, append([]string{"-o", "APT::Sandbox::User=root"}, args...)...)
	command.Dir = dir
	var out, problems bytes.Buffer
	command.Stdout, command.Stderr = &out, &problems
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(problems.String()))
	}
	return out.String(), nil
}

// download puts packages into a folder. Apt checks each against the signed lists;
// lists that are absent, or older than the archive, are renewed once.
func download(ctx context.Context, dir string, names []string) error {
	_, err := apt(ctx, dir, "apt-get", append([]string{"-qq", "download"}, names...)...)
	if err == nil {
		return nil
	}
	if _, renew := apt(ctx, dir, "apt-get", "-qq", "update"); renew != nil {
		return errors.Join(err, renew)
	}
	_, err = apt(ctx, dir, "apt-get", append([]string{"-qq", "download"}, names...)...)
	return err
}

// closure is the packages that roots need to run, roots included, in the order
// of the walk. Packages of without are already there.
func closure(ctx context.Context, roots, without []string) ([]string, error) {
	edges, err := dependencies(ctx, roots)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, name := range without {
		seen[name] = true
	}
	var found []string
	for queue := slices.Clone(roots); len(queue) > 0; queue = queue[1:] {
		name := queue[0]
		if seen[name] || isNeedless(name) {
			continue
		}
		seen[name] = true
		found = append(found, name)
		queue = append(queue, edges[name]...)
	}
	return found, nil
}

// dependencies asks apt what every package below roots depends on; of
// alternatives the first counts. Lists that are absent are fetched.
func dependencies(ctx context.Context, roots []string) (map[string][]string, error) {
	words := append([]string{"depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces", "--no-enhances"}, roots...)
	out, err := apt(ctx, "", "apt-cache", words...)
	if err != nil {
		if _, renew := apt(ctx, "", "apt-get", "-qq", "update"); renew != nil {
			return nil, errors.Join(err, renew)
		}
		if out, err = apt(ctx, "", "apt-cache", words...); err != nil {
			return nil, err
		}
	}
	return readDependencies(out), nil
}

// readDependencies reads what apt-cache prints: a package at the margin, what it
// depends on below it, a bar before all but the last of alternatives.
//
//	dash
//	  PreDepends: libc6
//	 |Depends: debconf
//	  Depends: <debconf-2.0>
func readDependencies(text string) map[string][]string {
	edges := map[string][]string{}
	name, chosen := "", false
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		line := lines.Text()
		if line != "" && line[0] != ' ' {
			name, chosen = line, false
			continue
		}
		kind, target, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok {
			continue // a package that provides the one before
		}
		if !chosen && !strings.HasPrefix(target, "<") {
			edges[name] = append(edges[name], target)
		}
		chosen = strings.HasPrefix(kind, "|")
	}
	return edges
}

// leftOut are folders that only a reader of documents misses.
func leftOut() []string {
	return []string{
		"usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian", "usr/share/bug", "usr/share/doc-base",
		"usr/share/common-licenses", "usr/share/zoneinfo/right", "usr/share/zoneinfo/posix", "var/lib/dpkg",
	}
}

// layerOfPackages writes the files of packages to a layer. Their installation
// scripts are not run.
func layerOfPackages(ctx context.Context, dir string, names []string, out *tar.Writer) error {
	folders := map[string]bool{}
	for _, name := range names {
		found, err := filepath.Glob(filepath.Join(dir, name+"_*.deb"))
		if err != nil || len(found) != 1 {
			return fmt.Errorf("package %s: found %v in %s, want one file: %w", name, found, dir, err)
		}
		if err := copyPackage(ctx, found[0], folders, out); err != nil {
			return fmt.Errorf("package %s: %w", name, err)
		}
	}
	return nil
}

func copyPackage(ctx context.Context, file string, folders map[string]bool, out *tar.Writer) error {
	command := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", file)
	var problems bytes.Buffer
	command.Stderr = &problems
	stdout, err := command.StdoutPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return err
	}
	copied := copyEntries(tar.NewReader(stdout), folders, out)
	// What is behind the archive's end is read too: dpkg-deb would not like to be
	// left with it.
	_, drained := io.Copy(io.Discard, stdout)
	if err := command.Wait(); err != nil {
		return fmt.Errorf("dpkg-deb: %w: %s", err, strings.TrimSpace(problems.String()))
	}
	return errors.Join(copied, drained)
}

func copyEntries(in *tar.Reader, folders map[string]bool, out *tar.Writer) error {
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		header.Name = merged(header.Name)
		if header.Name == "" || isLeftOut(header.Name) || isMergedTop(header.Name) {
			continue
		}
		if header.Typeflag == tar.TypeDir {
			if folders[header.Name] {
				continue
			}
			folders[header.Name] = true
			header.Name += "/"
		}
		if header.Typeflag == tar.TypeLink {
			header.Linkname = merged(header.Linkname)
		}
		if err := out.WriteHeader(header); err != nil {
			return err
		}
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
	}
}

// mergedTops are the folders that a Debian system has only as links into usr.
func mergedTops() []string { return []string{"bin", "lib", "lib32", "lib64", "libx32", "sbin"} }

func isMergedTop(name string) bool { return slices.Contains(mergedTops(), name) }

// merged is where a file of a package lies on a system whose usr is merged.
func merged(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if top, _, below := strings.Cut(name, "/"); below && isMergedTop(top) {
		return "usr/" + name
	}
	return name
}

func isLeftOut(name string) bool {
	for _, folder := range leftOut() {
		if name == folder || strings.HasPrefix(name, folder+"/") {
			return true
		}
	}
	return false
}

// readFromPackage returns one file of a package.
func readFromPackage(ctx context.Context, dir, name, wanted string) ([]byte, error) {
	var buffer bytes.Buffer
	layer := tar.NewWriter(&buffer)
	if err := errors.Join(layerOfPackages(ctx, dir, []string{name}, layer), layer.Close()); err != nil {
		return nil, err
	}
	for in := tar.NewReader(&buffer); ; {
		header, err := in.Next()
		if err != nil {
			return nil, fmt.Errorf("package %s: %s: %w", name, wanted, err)
		}
		if header.Name == wanted {
			return io.ReadAll(in)
		}
	}
}

// cacheDir is where what was made is kept for the next run, which then needs no
// network.
func cacheDir(key string) (string, error) {
	user, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("the images of the tests are kept in the user's cache: %w", err)
	}
	dir := filepath.Join(user, "balsa-software", key)
	return dir, os.MkdirAll(dir, 0o755)
}
