<%inherit file="base.mako"/>
<%def name="title()">Volumes</%def>
<h1>Volumes</h1>
<form method="get" action="${base}/volumes" class="row">
<input type="search" name="name" value="${name}" placeholder="Part of a name" aria-label="Part of a name">
<button class="quiet">Search</button>
</form>
% if not volumes:
<p>There is no volume${' with that in its name' if name else ''}.</p>
% else:
<div class="wide"><table>
<thead><tr><th scope="col">Volume</th><th scope="col">Size</th><th scope="col">State</th><th scope="col">Last good backup</th><th scope="col">Last verified backup</th></tr></thead>
<tbody>
% for one in volumes[:shown_most]:
<tr>
<th scope="row"><a href="${base}/volumes/${one.id}" title="${one.id}">${shown.named(one.name, one.id)}</a><small>project ${one.project_id}</small></th>
<td>${one.size} GiB</td>
<td>${shown.state(one.status)}</td>
<td>
% if one.last_good is None:
<span class="state bad">none</span>
% else:
${shown.since(one.last_good, now)}
% endif
</td>
<td>${shown.since(one.last_verified, now)}</td>
</tr>
% endfor
</tbody></table></div>
% if len(volumes) > shown_most:
<p><a href="${base}/volumes?${shown.query(name=name, marker=volumes[shown_most - 1].id)}">More</a></p>
% endif
% endif
