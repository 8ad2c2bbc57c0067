<%inherit file="base.mako"/>
<%namespace name="parts" file="parts.mako"/>
<%def name="title()">Stores</%def>
<h1>Stores</h1>
% for one in stores:
<% last = one.history[-1] if one.history else None %>\
<section>
<h2>${one.name}</h2>
% if last is None:
<p>Nothing was recorded yet: a worker does that within ten minutes.</p>
% else:
<p class="count">About ${shown.sized(last.bytes)} in ${last.objects} objects, of ${shown.counted(last.backups, 'backup')}; recorded ${shown.since(last.recorded_at, now)}.
% if one.price:
${f'{last.bytes / gib * one.price:.2f}'} a month.
% endif
</p>
% endif
% if lines[one.name] is not None:
<figure>
<svg class="line" viewBox="0 -5 1000 155" role="img" aria-label="Bytes in ${one.name} from ${lines[one.name].first} to ${lines[one.name].last}">
<line x1="0" x2="1000" y1="120.5" y2="120.5"/>
<polyline points="${lines[one.name].points}"/>
<text x="0" y="142">${lines[one.name].first}</text>
<text x="1000" y="142" text-anchor="end">${lines[one.name].last}</text>
</svg>
<figcaption><small>Bytes, day by day; as high as the drawing: ${shown.human_size(lines[one.name].most)}.</small></figcaption>
</figure>
% endif
<div class="wide"><table><tbody>
<tr><th scope="row">Locked</th><td>${f'for {shown.counted(one.lock_days, "day")}' if one.lock_days else 'no'}</td></tr>
<tr><th scope="row">Oldest proof</th><td>
% if one.unproven_since is None:
-
% else:
${shown.since(one.unproven_since, now)}
% if one.scrub_days and (now - one.unproven_since).days >= one.scrub_days:
${shown.state('overdue')}
% endif
% endif
<small>${f'everything is verified again within {shown.counted(one.scrub_days, "day")}' if one.scrub_days else 'nothing is verified by itself: scrub_days is 0'}</small></td></tr>
<tr><th scope="row">Damaged objects</th><td>${one.damaged_objects or 'none'}</td></tr>
<tr><th scope="row">Copies</th><td>${f'{one.copying} not made yet' if one.copying else 'all made'}
% if one.failed_copies:
${shown.state('failed')} ${one.failed_copies}
% endif
</td></tr>
% if one.name in calls:
<tr><th scope="row">Calls</th><td>${calls[one.name][0]}, of which ${calls[one.name][1]} failed<small>of this process, since its start</small></td></tr>
% endif
</tbody></table></div>
% if one.projects:
<div class="wide"><table>
<thead><tr><th scope="col">Project</th><th scope="col">Bytes</th><th scope="col">Objects</th><th scope="col">Backups</th>${'<th scope="col">A month</th>' if one.price else '' | n}</tr></thead>
<tbody>
% for project in one.projects:
<tr><th scope="row">${project.project_id}</th><td>${shown.sized(project.bytes)}</td><td>${project.objects}</td><td>${project.backups}</td>
% if one.price:
<td>${f'{project.bytes / gib * one.price:.2f}'}</td>
% endif
</tr>
% endfor
</tbody></table></div>
% if one.project_count > len(one.projects):
<p><small>The largest ${len(one.projects)} of ${one.project_count}.</small></p>
% endif
% endif
</section>
% endfor
<p><small>Counted from what backups put. What others share with a deleted backup can be missing; <code>backupfw usage --by store</code> reads the manifests and knows it exactly.</small></p>
${parts.same('GET /v3/PROJECT/os-services', None, 'backupfw usage --by project; backupfw store list', 'Something like it')}
